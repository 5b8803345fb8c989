package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	serviceAccountFile = "service-account.key"
	// formerFile tells the keys before it. It holds no private one.
	formerFile = "service-account.former.json"
	// publicBlock is PKIX, ASN.1 DER.
	publicBlock = "PUBLIC KEY"

	// ServiceAccountKeep is how long a former key is good, unless told otherwise: as
	// long as upstream lets a pod's token be, which it extends to a year for programs
	// that do not read it again (--service-account-extend-token-expiration).
	ServiceAccountKeep = year
)

// FormerKey has signed service-account tokens, which are good until a time.
type FormerKey struct {
	Public *ecdsa.PublicKey
	Until  time.Time
}

type formerEntry struct {
	PublicKey string    `json:"publicKey"`
	Until     time.Time `json:"until"`
}

// RotateServiceAccount makes a new key, which the next Ensure takes up. Tokens of
// the present one are good for keep more. Nothing else may change the folder
// meanwhile. A crash in between leaves the present key in use.
func RotateServiceAccount(path string, now time.Time, keep time.Duration) error {
	dir, err := openFolder(path)
	if err != nil {
		return err
	}
	defer dir.discard()
	text, err := dir.read(serviceAccountFile)
	if err != nil {
		return err
	}
	if text == nil {
		return fmt.Errorf("there is no key %s to be replaced: no server has run with this --data-dir", dir.path(serviceAccountFile))
	}
	present, err := ensureKey(dir, serviceAccountFile)
	if err != nil {
		return err
	}
	former, err := readFormer(dir)
	if err != nil {
		return err
	}
	former = append(stillGood(former, present, now), FormerKey{&present.PublicKey, now.Add(keep)})
	if err := writeFormer(dir, former); err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	if text, err = encodeKey(key); err != nil {
		return err
	}
	if err := dir.write(serviceAccountFile, text, "replaced"); err != nil {
		return err
	}
	return dir.commit()
}

// DropServiceAccounts has the tokens of all former keys refused, from the next Ensure
// on, and tells how many keys there were.
func DropServiceAccounts(path string) (int, error) {
	dir, err := openFolder(path)
	if err != nil {
		return 0, err
	}
	defer dir.discard()
	former, err := readFormer(dir)
	if err != nil || len(former) == 0 {
		return 0, err
	}
	if err := writeFormer(dir, nil); err != nil {
		return 0, err
	}
	return len(former), dir.commit()
}

func readFormer(dir *folder) ([]FormerKey, error) {
	text, err := dir.read(formerFile)
	if err != nil || text == nil {
		return nil, err
	}
	wayOut := "restore it from a backup, or delete it, and every token of a former key is refused"
	var entries []formerEntry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("former keys of service accounts: %s is damaged (%w): %s", dir.path(formerFile), err, wayOut)
	}
	var keys []FormerKey
	for _, e := range entries {
		key, err := parsePublic(e.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("former keys of service accounts: %s is damaged (%w): %s", dir.path(formerFile), err, wayOut)
		}
		keys = append(keys, FormerKey{key, e.Until})
	}
	return keys, nil
}

func parsePublic(text string) (*ecdsa.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no public key in it")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T in it", key)
	}
	return ec, nil
}

func writeFormer(dir *folder, keys []FormerKey) error {
	entries := []formerEntry{}
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k.Public)
		if err != nil {
			return fmt.Errorf("encode a former key of service accounts: %w", err)
		}
		entries = append(entries, formerEntry{string(pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der})), k.Until.UTC()})
	}
	text, err := json.MarshalIndent(entries, "", "  ")
	if err != nil {
		return fmt.Errorf("encode former keys of service accounts: %w", err)
	}
	return dir.write(formerFile, append(text, '\n'), "written")
}

// stillGood leaves out keys whose time is over, and the present one, which a crash
// between the two files leaves among them.
func stillGood(keys []FormerKey, present *Key, now time.Time) []FormerKey {
	return slices.DeleteFunc(keys, func(k FormerKey) bool {
		return !now.Before(k.Until) || k.Public.Equal(&present.PublicKey)
	})
}
