package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
)

// scryptWork is the binary logarithm of the work that a passphrase is made a key
// with. This one takes 32 MiB of memory for a tenth of a second, which a small
// machine has while its cluster runs; age's own default takes 256 MiB.
const scryptWork = 15

// Keys name the files that backups are encrypted by, and opened. None has them
// written in the clear.
type Keys struct {
	// PassphraseFile holds a passphrase in its first line.
	PassphraseFile string
	// RecipientsFile holds public keys of age, one a line.
	RecipientsFile string
	// IdentityFile holds the secret keys of recipients. Only reading needs it.
	IdentityFile string
}

// Sealed tells whether backups are encrypted.
func (k Keys) Sealed() bool { return k.PassphraseFile != "" || k.RecipientsFile != "" }

func (k Keys) recipients() ([]age.Recipient, error) {
	if k.PassphraseFile != "" && k.RecipientsFile != "" {
		return nil, errors.New("encrypt backup: a passphrase and recipients cannot be used at once: give one of --backup-passphrase-file and --backup-recipients-file")
	}
	if k.PassphraseFile != "" {
		text, err := passphrase(k.PassphraseFile)
		if err != nil {
			return nil, err
		}
		r, err := age.NewScryptRecipient(text)
		if err != nil {
			return nil, fmt.Errorf("encrypt backup with the passphrase of %s: %w", k.PassphraseFile, err)
		}
		r.SetWorkFactor(scryptWork)
		return []age.Recipient{r}, nil
	}
	text, err := os.ReadFile(k.RecipientsFile)
	if err != nil {
		return nil, fmt.Errorf("read recipients of backups (--backup-recipients-file): %w", err)
	}
	r, err := age.ParseRecipients(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read recipients of backups from %s: %w: give public keys of age, one a line", k.RecipientsFile, err)
	}
	return r, nil
}

func (k Keys) identities() ([]age.Identity, error) {
	var all []age.Identity
	if k.IdentityFile != "" {
		text, err := os.ReadFile(k.IdentityFile)
		if err != nil {
			return nil, fmt.Errorf("read key of backups (--identity-file): %w", err)
		}
		if all, err = age.ParseIdentities(bytes.NewReader(text)); err != nil {
			return nil, fmt.Errorf("read key of backups from %s: %w: give secret keys of age, one a line", k.IdentityFile, err)
		}
	}
	if k.PassphraseFile != "" {
		text, err := passphrase(k.PassphraseFile)
		if err != nil {
			return nil, err
		}
		i, err := age.NewScryptIdentity(text)
		if err != nil {
			return nil, fmt.Errorf("use the passphrase of %s: %w", k.PassphraseFile, err)
		}
		i.SetMaxWorkFactor(20)
		all = append(all, i)
	}
	return all, nil
}

func passphrase(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read passphrase of backups (--backup-passphrase-file): %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	if first = strings.TrimSuffix(first, "\r"); first == "" {
		return "", fmt.Errorf("read passphrase of backups from %s: its first line is empty", path)
	}
	return first, nil
}

// seal returns a writer that encrypts to another one; it has to be closed. Without
// keys it writes as it is told.
func (k Keys) seal(to io.Writer) (io.WriteCloser, error) {
	if !k.Sealed() {
		return unsealed{to}, nil
	}
	r, err := k.recipients()
	if err != nil {
		return nil, err
	}
	w, err := age.Encrypt(to, r...)
	if err != nil {
		return nil, fmt.Errorf("encrypt backup: %w", err)
	}
	return w, nil
}

type unsealed struct{ io.Writer }

func (unsealed) Close() error { return nil }

// ageHead is what encrypted files begin with.
const ageHead = "age-encryption.org/"

// errSealed is told of a backup for which no key was given.
var errSealed = errors.New("it is encrypted: give --identity-file or --backup-passphrase-file")

// open decrypts what is encrypted.
func (k Keys) open(from io.Reader) (io.Reader, error) {
	head := make([]byte, len(ageHead))
	n, err := io.ReadFull(from, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	from = io.MultiReader(bytes.NewReader(head[:n]), from)
	if string(head[:n]) != ageHead {
		return from, nil
	}
	keys, err := k.identities()
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errSealed
	}
	r, err := age.Decrypt(from, keys...)
	if errors.As(err, new(*age.NoIdentityMatchError)) {
		return nil, errors.New("it is encrypted for another key, or with another passphrase")
	}
	if err != nil {
		return nil, damaged(err)
	}
	return r, nil
}
