package controlplane

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"

	"github.com/knarr-dev/knarr/pkg/encryption"
)

// TestEncryptionConfigurationIsInForceWhenItChanges: at once, and only if it has
// no mistake.
func TestEncryptionConfigurationIsInForceWhenItChanges(t *testing.T) {
	dir := t.TempDir()
	path := encryption.Path(dir)
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := encryption.Ensure(path, false); err != nil {
		t.Fatal(err)
	}
	first, err := encryptionconfig.LoadEncryptionConfig(t.Context(), path, true, "id")
	if err != nil {
		t.Fatal(err)
	}
	set := encryptionconfig.NewDynamicTransformers(first.Transformers, first.HealthChecks[0], func() {}, 0)
	generic := &genericapiserver.Config{APIServerID: "id", ResourceTransformers: set, DisabledPostStartHooks: sets.NewString()}
	r, err := reloadEncryption(generic, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if !generic.DisabledPostStartHooks.Has(reloadHook) {
		t.Error("upstream's own reload is left at work")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.run(ctx)
	}()
	inForce := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if loaded, err := os.ReadFile(encryption.LoadedPath(dir)); err == nil && string(loaded) == encryption.Hash(text) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("a change was not seen")
			}
		}
		text, err := set.TransformerForResource(schema.GroupResource{Resource: "secrets"}).TransformToStorage(t.Context(), []byte("plain"), nil)
		if err != nil || !strings.HasPrefix(string(text), want) {
			t.Errorf("a Secret is stored as %q (%v), not %s…", text, err, want)
		}
	}
	inForce("plain")
	replace := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := encryption.Ensure(other, true); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	replace(good)
	inForce("k8s:enc:secretbox:v1:key1:")
	replace([]byte("kind: Mistake\n"))
	replace(good)
	inForce("k8s:enc:secretbox:v1:key1:")
	cancel()
	<-ended
	if _, err := os.Stat(encryption.LoadedPath(dir)); err == nil {
		t.Error("it says that it follows the file, and has ended")
	}
}

func TestUsersOwnEncryptionTakesThePlaceOfOurs(t *testing.T) {
	for arg, ours := range map[string]bool{
		"v=2": true, "encryption-provider-config=/etc/own.yaml": false, "encryption_provider_config=/etc/own.yaml": false,
		"encryption-provider-config-automatic-reload=true": true,
	} {
		if encryptsOurWay([]string{arg}) != ours {
			t.Errorf("%s: ours is used: %v", arg, !ours)
		}
	}
}
