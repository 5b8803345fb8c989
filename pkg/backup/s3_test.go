package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// gateway starts a real server of S3 with a bucket, which scripts/s3.sh builds
// (`make long`), and returns how to reach it.
func gateway(t *testing.T) S3Config {
	t.Helper()
	exe, err := filepath.Abs("../../build/s3/versitygw")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(exe); err != nil {
		t.Skip("there is no server of S3: scripts/s3.sh builds one")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "backups"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	var said bytes.Buffer
	server := exec.Command(exe, "--port", address, "posix", dir)
	server.Env = append(os.Environ(), "ROOT_ACCESS_KEY=knarr", "ROOT_SECRET_KEY=not-a-secret")
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	for deadline := time.Now().Add(time.Minute); ; { // it tells nobody when it listens
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server of S3 does not listen: %v\n%s", err, &said)
		}
		time.Sleep(20 * time.Millisecond)
	}
	file := filepath.Join(t.TempDir(), "credentials")
	write(t, file, "[default]\naws_access_key_id = knarr\naws_secret_access_key = not-a-secret\n")
	return S3Config{Endpoint: address, Insecure: true, Bucket: "backups", Folder: "edge/1", CredentialsFile: file}
}

func TestBucketKeepsBackups(t *testing.T) {
	s3 := gateway(t)
	storage, err := NewS3(s3)
	if err != nil {
		t.Fatal(err)
	}
	c := configOf(server(t, "sqlite"), keysOf(t)["with a passphrase"][0])
	c.Storage, c.Retention = storage, 2
	// Large, and of nothing that gets smaller.
	large := make([]byte, 12<<20)
	for n := range large {
		large[n] = byte(n * n >> 7 * 31)
	}
	write(t, filepath.Join(c.DataDir, "server", "manifests", "large.yaml"), string(large))
	var made []string
	for range 3 {
		_, stored, err := Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, stored.Name)
	}
	all, err := List(t.Context(), c)
	if err != nil || len(all) != 3 || all[2].Name != made[2] || all[2].Size == 0 || !all[2].Encrypted {
		t.Fatalf("%v, %v", all, err)
	}
	if deleted, err := Prune(t.Context(), c); err != nil || len(deleted) != 1 || deleted[0].Name != made[0] {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	to := c
	to.DataDir = t.TempDir()
	if _, err := Restore(t.Context(), to, made[0], false); err == nil || !strings.Contains(err.Error(), "knarr backup list") {
		t.Errorf("one that was deleted: %v", err)
	}
	if _, err := Restore(t.Context(), to, made[2], false); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(to.DataDir, "server", "manifests", "large.yaml")); err != nil || !bytes.Equal(text, large) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestMistakesWithABucketAreTold(t *testing.T) {
	good := gateway(t)
	wrong := filepath.Join(t.TempDir(), "wrong")
	write(t, wrong, "[default]\naws_access_key_id = knarr\naws_secret_access_key = guessed\n")
	for name, c := range map[string]struct {
		change func(*S3Config)
		want   string
	}{
		"bucket":      {func(c *S3Config) { c.Bucket = "other" }, "make the bucket"},
		"credentials": {func(c *S3Config) { c.CredentialsFile = wrong }, "look at the credentials"},
	} {
		cfg := good
		c.change(&cfg)
		s, err := NewS3(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.List(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestS3NeedsABucketAndReadableCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  S3Config
		want string
	}{
		"no bucket":      {S3Config{}, "--backup-s3-bucket"},
		"no credentials": {S3Config{Bucket: "b", CredentialsFile: "/nowhere"}, "--backup-s3-credentials-file"},
		"no authority":   {S3Config{Bucket: "b", EndpointCA: os.DevNull}, "--backup-s3-endpoint-ca"},
		"endpoint":       {S3Config{Bucket: "b", Endpoint: "a/b"}, "--backup-s3-endpoint"},
	} {
		if _, err := NewS3(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnreachableBucketFailsInTime: nobody listens there.
func TestUnreachableBucketFailsInTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	write(t, file, "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
	s, err := NewS3(S3Config{Bucket: "b", Endpoint: "127.0.0.1:1", Insecure: true, CredentialsFile: file, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = s.List(t.Context())
	if err == nil || errors.Is(err, context.Canceled) || time.Since(began) > time.Minute {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if !strings.Contains(fmt.Sprint(err), "s3://b at 127.0.0.1:1") {
		t.Errorf("it does not say where: %v", err)
	}
}
