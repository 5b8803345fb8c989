package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKeysOfTokensAreKeptForTheirTime(t *testing.T) {
	now := time.Now()
	cfg := testConfig(t)
	cfg.Now = func() time.Time { return now }
	if err := RotateServiceAccount(cfg.Dir, now, time.Hour); err == nil || !strings.Contains(err.Error(), "no server has run") {
		t.Errorf("a folder without a key: %v", err)
	}
	first := ensure(t, cfg)
	for range 2 {
		if err := RotateServiceAccount(cfg.Dir, now, time.Hour); err != nil {
			t.Fatal(err)
		}
		now = now.Add(40 * time.Minute)
	}
	// The first has 20 minutes less than the second.
	now = now.Add(-30 * time.Minute)
	p := ensure(t, cfg)
	if len(p.FormerServiceAccount) != 2 || !p.FormerServiceAccount[0].Public.Equal(&first.ServiceAccount.PublicKey) || p.ServiceAccount.Equal(first.ServiceAccount.PrivateKey) {
		t.Fatalf("former keys: %v", p.FormerServiceAccount)
	}
	now = now.Add(15 * time.Minute)
	if p = ensure(t, cfg); len(p.FormerServiceAccount) != 1 || p.FormerServiceAccount[0].Public.Equal(&first.ServiceAccount.PublicKey) {
		t.Errorf("after the first one's time: %v", p.FormerServiceAccount)
	}
	text, err := os.ReadFile(filepath.Join(cfg.Dir, formerFile))
	if err != nil || strings.Contains(string(text), "PRIVATE") {
		t.Errorf("private keys are kept: %v", err)
	}
	if n, err := DropServiceAccounts(cfg.Dir); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if p = ensure(t, cfg); len(p.FormerServiceAccount) != 0 {
		t.Errorf("after they were dropped: %v", p.FormerServiceAccount)
	}

	// A crash between the two files leaves the present key among the former ones.
	key, err := os.ReadFile(filepath.Join(cfg.Dir, serviceAccountFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := RotateServiceAccount(cfg.Dir, now, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, serviceAccountFile), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if p = ensure(t, cfg); len(p.FormerServiceAccount) != 0 {
		t.Errorf("the present key is a former one: %v", p.FormerServiceAccount)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, formerFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(cfg); err == nil || !strings.Contains(err.Error(), formerFile+" is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}
