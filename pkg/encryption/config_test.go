package encryption

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

func load(t *testing.T, path string) Config {
	t.Helper()
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTheAPIServerReadsWhatIsWritten goes through a rotation's configurations by
// upstream's own code: what one wrote the next one reads, until its key is gone.
func TestTheAPIServerReadsWhatIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := Ensure(path, true); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	stored := map[string][]byte{} // by the key that wrote it
	step := func(c Config, readable ...string) {
		t.Helper()
		if err := c.save(path); err != nil {
			t.Fatal(err)
		}
		u, err := encryptionconfig.LoadEncryptionConfig(t.Context(), path, true, "id")
		if err != nil {
			t.Fatal(err)
		}
		secrets := u.Transformers[schema.GroupResource{Resource: "secrets"}]
		now, err := secrets.TransformToStorage(t.Context(), []byte("k8s\x00plain"), value.DefaultContext("/registry/secrets/a/b"))
		if err != nil {
			t.Fatal(err)
		}
		stored[c.writesWith()] = now
		if got := keyOf(now); got != c.writesWith() {
			t.Errorf("it was written with %q, not %q", got, c.writesWith())
		}
		for key, text := range stored {
			plain, stale, err := secrets.TransformFromStorage(t.Context(), text, value.DefaultContext("/registry/secrets/a/b"))
			if want := slices.Contains(readable, key); want != (err == nil && string(plain) == "k8s\x00plain") {
				t.Errorf("%q reads what %q wrote: %q, %v", c.writesWith(), key, plain, err)
			}
			if err == nil && stale != (key != c.writesWith()) {
				t.Errorf("%q says of what %q wrote that it is old: %v", c.writesWith(), key, stale)
			}
		}
		if !equal(load(t, path), c) {
			t.Errorf("read as %+v, written as %+v", load(t, path), c)
		}
	}
	c := load(t, path)
	step(c, "key1")
	plain, err := NewOpener(t.Context(), path).Open(t.Context(), "/registry/secrets/a/b", stored["key1"])
	if err != nil || string(plain) != "k8s\x00plain" {
		t.Errorf("decrypted to %q, %v", plain, err)
	}
	k, err := c.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c.Keys = slices.Insert(c.Keys, 0, k)
	step(c, "key1", "key2")
	c.Keys = c.Keys[:1]
	step(c, "key2")
	c.Enabled = false
	step(c, "key2", "")
	c.Enabled = true
	step(c, "key2", "")
	if k, err := c.NewKey(); err != nil || k.Name != "key3" {
		t.Errorf("%v, %v", k.Name, err)
	}
}

func equal(a, b Config) bool { return a.Enabled == b.Enabled && slices.Equal(a.Keys, b.Keys) }

func TestClusterWithoutEncryptionHasAConfigurationToChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := Ensure(path, false); err != nil {
		t.Fatal(err)
	}
	if c := load(t, path); c.Enabled || len(c.Keys) > 0 {
		t.Errorf("%+v", c)
	}
	u, err := encryptionconfig.LoadEncryptionConfig(t.Context(), path, true, "id")
	if err != nil {
		t.Fatal(err)
	}
	text, err := u.Transformers[schema.GroupResource{Resource: "secrets"}].TransformToStorage(t.Context(), []byte("plain"), nil)
	if err != nil || string(text) != "plain" {
		t.Errorf("stored as %q, %v", text, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Ensure(path, true); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("one that was there is now %q, %v", after, err)
	}
}

func TestConfigurationsOfTheUsersOwnAreLeftAlone(t *testing.T) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n"
	for name, c := range map[string]struct {
		text    string
		foreign bool
	}{
		"other resources": {head + "- resources: [secrets, configmaps]\n  providers: [{identity: {}}]\n", true},
		"two entries":     {head + "- resources: [secrets]\n  providers: [{identity: {}}]\n- resources: [pods]\n  providers: [{identity: {}}]\n", true},
		"other provider":  {head + "- resources: [secrets]\n  providers: [{kms: {apiVersion: v2, name: a, endpoint: unix:///a}}, {identity: {}}]\n", true},
		"other kind":      {"apiVersion: v1\nkind: Secret\n", true},
		"damaged key":     {head + "- resources: [secrets]\n  providers: [{secretbox: {keys: [{name: key1, secret: AAAA}]}}]\n", false},
		"no YAML":         {"\x00", false},
		"nothing":         {"", true},
	} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if err == nil || errors.Is(err, ErrForeign) != c.foreign || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		m := &Manager{ServerDir: filepath.Dir(path)}
		if err := os.Rename(path, Path(m.ServerDir)); err != nil {
			t.Fatal(err)
		}
		if err := m.Rotate(t.Context()); err == nil {
			t.Errorf("%s: keys were rotated", name)
		}
		if now, err := os.ReadFile(Path(m.ServerDir)); err != nil || string(now) != c.text {
			t.Errorf("%s: it is now %q, %v", name, now, err)
		}
	}
}

func TestStoredValuesTellTheirKey(t *testing.T) {
	for text, want := range map[string]string{
		"k8s\x00":                              "",
		"":                                     "",
		"k8s:enc:secretbox:v1:key7:abc":        "key7",
		"k8s:enc:kms:v2:vault:abc":             "provider kms",
		"k8s:enc:":                             "provider ",
		"k8s:enc:secretbox:v1:key7":            "key7",
		"k8s:enc:secretbox:v1:" + "key1:k8s:e": "key1",
	} {
		if got := keyOf([]byte(text)); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

// TestNothingChangesWhileNoServerReadsTheFile: it would not be followed.
func TestNothingChangesWhileNoServerReadsTheFile(t *testing.T) {
	m := &Manager{ServerDir: t.TempDir()}
	if err := Ensure(Path(m.ServerDir), true); err != nil {
		t.Fatal(err)
	}
	before := load(t, Path(m.ServerDir))
	if err := m.Rotate(t.Context()); err == nil || !strings.Contains(err.Error(), "start it") {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(filepath.Dir(LoadedPath(m.ServerDir)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(LoadedPath(m.ServerDir), []byte("sha256:another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Rotate(t.Context()); err == nil || !strings.Contains(err.Error(), "works by another") {
		t.Errorf("%v", err)
	}
	if !equal(before, load(t, Path(m.ServerDir))) {
		t.Error("the configuration has changed")
	}
}
