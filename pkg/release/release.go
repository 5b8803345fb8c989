// Package release fetches a release's executables, and takes only those that
// the holder of the key has signed. scripts/release.sh makes what it reads:
//
//	sha256sums.txt       checksums of all files, and of what packed ones hold
//	sha256sums.txt.sig   its signature, ECDSA P-256 over SHA-256, ASN.1
//	knarr-ARCH.zst       the executable; knarr-crictl-ARCH.zst beside it
package release

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

const (
	sumsFile      = "sha256sums.txt"
	signatureFile = sumsFile + ".sig"
	// maxSmall bounds what is read before it is verified, in bytes.
	maxSmall = 1 << 20
	// stall is how long a download may bring nothing.
	stall = time.Minute
)

// Source is where a release is.
type Source struct {
	// From is a folder or a file of it, as a path or as an http or https URL. A
	// URL of a folder ends with a slash.
	From string
	// Key is the public key of the release, PEM. It has to be given unless
	// SkipSignature is set.
	Key []byte
	// SkipSignature trusts checksums without a signature, and an executable that
	// is a file of its own without checksums.
	SkipSignature bool
	// Arch is the machine's, as Go names it.
	Arch string
	// Client fetches URLs. Default: one that gives up after a minute of silence.
	Client *http.Client
}

// Fetch puts the verified executables knarr and, if the release has it,
// knarr-crictl into dir, which must be there. It is resumed by nobody: what
// failed leaves nothing.
func (s Source) Fetch(ctx context.Context, dir string) error {
	base, file := s.split()
	sums, err := s.sums(ctx, base)
	if err != nil {
		return err
	}
	if sums == nil {
		return s.fetchPlain(base, file, filepath.Join(dir, "knarr"))
	}
	if file == "" {
		file = "knarr-" + s.Arch
	}
	name := strings.TrimSuffix(strings.TrimSuffix(file, ".zst"), ".gz")
	if err := s.program(ctx, sums, base, name, filepath.Join(dir, "knarr")); err != nil {
		return err
	}
	tool := "knarr-crictl-" + s.Arch
	if sums[tool] == "" || name != "knarr-"+s.Arch {
		return nil
	}
	return s.program(ctx, sums, base, tool, filepath.Join(dir, "knarr-crictl"))
}

func (s Source) remote() bool {
	return strings.HasPrefix(s.From, "https://") || strings.HasPrefix(s.From, "http://")
}

// split takes the folder of the release and a file in it apart, if one is named.
func (s Source) split() (base, file string) {
	if s.remote() {
		i := strings.LastIndexByte(s.From, '/')
		return s.From[:i], s.From[i+1:]
	}
	if st, err := os.Stat(s.From); err == nil && st.IsDir() {
		return s.From, ""
	}
	return filepath.Dir(s.From), filepath.Base(s.From)
}

// sums reads the verified list of checksums; nil if there is none and none is
// needed.
func (s Source) sums(ctx context.Context, base string) (map[string]string, error) {
	text, err := s.small(ctx, base, sumsFile)
	if errors.Is(err, fs.ErrNotExist) && s.SkipSignature && !s.remote() {
		return nil, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s beside %s to verify it by: %w (an executable of your own needs --skip-signature)", sumsFile, s.From, err)
	}
	if err != nil {
		return nil, err
	}
	if !s.SkipSignature {
		signature, err := s.small(ctx, base, signatureFile)
		if err != nil {
			return nil, fmt.Errorf("the list of checksums has no signature: %w", err)
		}
		if err := Verify(s.Key, text, signature); err != nil {
			return nil, err
		}
	}
	return parseSums(text), nil
}

// Verify tells whether the holder of the key, PEM, has signed the text.
func Verify(key, text, signature []byte) error {
	block, _ := pem.Decode(key)
	if block == nil {
		return errors.New("verify the release: the public key is no PEM file")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("verify the release: read the public key: %w", err)
	}
	ec, ok := public.(*ecdsa.PublicKey)
	if !ok || ec.Curve != elliptic.P256() {
		return errors.New("verify the release: the public key is not of ECDSA P-256")
	}
	sum := sha256.Sum256(text)
	if !ecdsa.VerifyASN1(ec, sum[:], signature) {
		return errors.New("the list of checksums is not signed by the release's key: nothing was changed")
	}
	return nil
}

// parseSums reads lines as sha256sum writes them.
func parseSums(text []byte) map[string]string {
	sums := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 2 && len(f[0]) == hex.EncodedLen(sha256.Size) {
			sums[strings.TrimPrefix(f[1], "*")] = strings.ToLower(f[0])
		}
	}
	return sums
}

// program fetches, verifies and unpacks an executable.
func (s Source) program(ctx context.Context, sums map[string]string, base, name, to string) error {
	for _, kind := range []string{".zst", ".gz", ""} {
		file := name + kind
		if sums[file] == "" || !s.remote() && !isFile(filepath.Join(base, file)) {
			continue
		}
		packed := to + ".packed"
		defer os.Remove(packed)
		if err := s.download(ctx, base, file, packed); err != nil {
			return err
		}
		// Only what is verified is unpacked.
		if err := verifyFile(packed, file, sums[file]); err != nil {
			return err
		}
		if err := unpack(packed, kind, to); err != nil {
			return fmt.Errorf("unpack %s: %w", file, err)
		}
		if sums[name] != "" {
			return verifyFile(to, name, sums[name])
		}
		return nil
	}
	return fmt.Errorf("the release at %s has no %s", base, name)
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// fetchPlain takes an executable that nobody vouches for.
func (s Source) fetchPlain(base, file, to string) error {
	if file == "" {
		file = "knarr-" + s.Arch
	}
	kind := path.Ext(file)
	if kind != ".zst" && kind != ".gz" {
		kind = ""
	}
	if err := unpack(filepath.Join(base, file), kind, to); err != nil {
		return fmt.Errorf("copy %s: %w", file, err)
	}
	return nil
}

func unpack(from, kind, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var r io.Reader = in
	switch kind {
	case ".zst":
		z, err := zstd.NewReader(in)
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	case ".gz":
		z, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		r = z
	}
	return writeFile(to, 0o755, r)
}

func writeFile(to string, mode os.FileMode, r io.Reader) error {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

func verifyFile(path, name, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("verify %s: %w", name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s is not what was released: its sha256 is %s, and should be %s; nothing was changed", name, got, want)
	}
	return nil
}

// open opens a file of the release.
func (s Source) open(ctx context.Context, base, name string) (io.ReadCloser, error) {
	if !s.remote() {
		return os.Open(filepath.Join(base, name))
	}
	where := base + "/" + url.PathEscape(name)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", where, err)
	}
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", where, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err := fmt.Errorf("fetch %s: the server answered %s", where, resp.Status)
		if resp.StatusCode == http.StatusNotFound {
			err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
		}
		return nil, err
	}
	return resp.Body, nil
}

func (s Source) small(ctx context.Context, base, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, stall)
	defer cancel()
	r, err := s.open(ctx, base, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxSmall))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

// download copies a file, and gives up when nothing comes for a while.
func (s Source) download(ctx context.Context, base, name, to string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(stall, func() { cancel(fmt.Errorf("nothing came for %s", stall)) })
	defer silence.Stop()
	r, err := s.open(ctx, base, name)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := writeFile(to, 0o600, &heard{r, silence}); err != nil {
		return fmt.Errorf("fetch %s: %w", name, errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// heard puts the alarm off each time something comes.
type heard struct {
	io.Reader
	silence *time.Timer
}

func (h *heard) Read(b []byte) (int, error) {
	n, err := h.Reader.Read(b)
	h.silence.Reset(stall)
	return n, err
}
