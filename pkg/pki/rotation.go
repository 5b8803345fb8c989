package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// Authorities are replaced in two steps, with an overlap between them.
//
// BeginRotation makes the new ones in the folder "next" and then writes the
// rotation file: from the next Ensure on, old and new are trusted, and the new
// ones sign what only this server has to understand: its clients' certificates,
// and those that nodes ask for. What others have to have learned to trust first is
// still signed by the old ones: what the API server serves with, what it shows to
// kubelets, and what it shows to extension API servers.
//
// FinishRotation writes that it is to end: the next Ensure moves the new
// authorities into the place of the old and signs everything by them.
//
// Each step is one file that is replaced at once; what a crash leaves behind it is
// done again or removed by the next Ensure.
const (
	// NextDir is the folder of authorities that are to replace others.
	NextDir      = "next"
	rotationFile = "rotation.json"
	retiredFile  = "retired-authorities"
	crossFile    = "server-ca.cross.crt"
	trustSuffix  = ".trust.crt"
)

var authorityNames = []string{"server-ca", "client-ca", "request-header-ca"}

// Rotation is a replacement of the authorities that has begun.
type Rotation struct {
	Began time.Time `json:"began"`
	// FinishAfter is when it ends by itself, once every node has followed. Zero is
	// never.
	FinishAfter time.Time `json:"finishAfter,omitzero"`
	// Finishing tells that the old authorities are to go.
	Finishing bool `json:"finishing,omitempty"`
}

// ErrNoRotation is in the error of FinishRotation where none has begun.
var ErrNoRotation = errors.New("no rotation of the authorities has begun")

// ReadRotation returns nil where no rotation has begun in a folder of certificates.
func ReadRotation(dir string) (*Rotation, error) {
	path := filepath.Join(dir, rotationFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read how far the rotation of authorities is: %w", err)
	}
	r := new(Rotation)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read how far the rotation of authorities is: %s is damaged (%w): restore it from a backup; if there is none and %s holds three authorities, write {} into it", path, err, filepath.Join(dir, NextDir))
	}
	return r, nil
}

func (r Rotation) write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode how far the rotation of authorities is: %w", err)
	}
	return WriteSecret(filepath.Join(dir, rotationFile), append(text, '\n'))
}

// BeginRotation makes new authorities, which the next Ensure takes up. Those of
// which from has both files are the user's own; from may be empty. finishAfter may
// be zero. Nothing else may change the folder meanwhile.
func BeginRotation(dir, from string, now, finishAfter time.Time) error {
	if r, err := ReadRotation(dir); err != nil {
		return err
	} else if r != nil {
		return fmt.Errorf("a rotation of the authorities has begun at %s: finish it first", stamp(r.Began))
	}
	old := new(folder)
	old.dir = dir
	var present []*Authority
	for _, name := range authorityNames {
		if !exists(old.path(name + ".crt")) {
			return fmt.Errorf("there is no authority %s to be replaced: no server has run with this --data-dir", old.path(name+".crt"))
		}
		a, err := ensureAuthority(old, name, now)
		if err != nil {
			return err
		}
		present = append(present, a)
	}
	old.discard()
	path := filepath.Join(dir, NextDir)
	if err := os.RemoveAll(path); err != nil { // what a crash left
		return fmt.Errorf("remove unfinished authorities: %w", err)
	}
	next, err := openFolder(path)
	if err != nil {
		return err
	}
	defer next.discard()
	for i, name := range authorityNames {
		if err := bring(next, from, name); err != nil {
			return err
		}
		// What was staged is not yet there to be read.
		if err := next.commit(); err != nil {
			return err
		}
		a, err := ensureSuccessor(next, name, now)
		if err != nil {
			return err
		}
		if a.Cert.Equal(present[i].Cert) {
			return fmt.Errorf("%s in %s is the present authority: give another, or none to have one made", name+".crt", from)
		}
		if name == "server-ca" {
			if err := writeCross(next, present[i], a); err != nil {
				return err
			}
		}
	}
	if err := next.commit(); err != nil {
		return err
	}
	if err := durable.SyncDir(dir); err != nil {
		return err
	}
	return Rotation{Began: now.UTC(), FinishAfter: finishAfter.UTC()}.write(dir)
}

// bring stages an authority of the user's, if from has one of that name.
func bring(next *folder, from, name string) error {
	if from == "" || !exists(filepath.Join(from, name+".crt")) && !exists(filepath.Join(from, name+".key")) {
		return nil
	}
	for _, file := range []string{name + ".key", name + ".crt"} {
		text, err := os.ReadFile(filepath.Join(from, file))
		if err != nil {
			return fmt.Errorf("read the new authority: %w", err)
		}
		if err := next.write(file, text, "brought from "+from); err != nil {
			return err
		}
	}
	return nil
}

// writeCross has the new authority of servers vouch for the old one: who knows
// only the new one's hash, from a token, then trusts what the old one has signed,
// until the API server serves with a certificate of the new one.
func writeCross(next *folder, old, successor *Authority) error {
	if c := successor.Cert; c.MaxPathLen == 0 && c.MaxPathLenZero {
		return fmt.Errorf("the new authority %s may not vouch for another one (its path length is limited to 0), which it has to for the old one until the rotation ends: make one without that limit", c.Subject)
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	to := old.Cert.NotAfter
	if successor.Cert.NotAfter.Before(to) {
		to = successor.Cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: old.Cert.Subject, RawSubject: old.Cert.RawSubject, SubjectKeyId: old.Cert.SubjectKeyId,
		NotBefore: successor.Cert.NotBefore, NotAfter: to,
		KeyUsage: old.Cert.KeyUsage, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, successor.Cert, old.Cert.PublicKey, successor.key)
	if err != nil {
		return fmt.Errorf("have the new authority vouch for the old one: %w", err)
	}
	return next.write(crossFile, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der}), "made")
}

// FinishRotation has the next Ensure replace the old authorities by the new.
func FinishRotation(dir string) error {
	r, err := ReadRotation(dir)
	if err != nil {
		return err
	}
	if r == nil {
		return ErrNoRotation
	}
	r.Finishing = true
	return r.write(dir)
}

// rotation does what is left of one that was told to end, or of one that a crash
// cut off before it had begun, and returns the one that goes on.
func rotation(dir string) (*Rotation, error) {
	r, err := ReadRotation(dir)
	if err != nil || r != nil && !r.Finishing {
		return r, err
	}
	next := filepath.Join(dir, NextDir)
	if r != nil {
		if err := moveIn(dir, next); err != nil {
			return nil, fmt.Errorf("put the new authorities into the place of the old: %w", err)
		}
		if err := os.Remove(filepath.Join(dir, rotationFile)); err != nil {
			return nil, fmt.Errorf("end the rotation of authorities: %w", err)
		}
		if err := durable.SyncDir(dir); err != nil {
			return nil, err
		}
	}
	if !exists(next) {
		return nil, nil
	}
	if err := os.RemoveAll(next); err != nil {
		return nil, fmt.Errorf("remove what is left of a rotation of authorities: %w", err)
	}
	return nil, nil
}

// moveIn may be done again after a crash in the middle of it.
func moveIn(dir, next string) error {
	to := &folder{dir: dir}
	defer to.discard()
	retired := readRetired(dir)
	for _, name := range authorityNames {
		certPEM, err := os.ReadFile(filepath.Join(next, name+".crt"))
		if err != nil {
			return err
		}
		keyPEM, err := os.ReadFile(filepath.Join(next, name+".key"))
		if err != nil {
			return err
		}
		old, err := os.ReadFile(to.path(name + ".crt"))
		if err != nil {
			return err
		}
		if hash := hashOf(old); hash != hashOf(certPEM) && !slices.Contains(retired, hash) {
			retired = append(retired, hash)
		}
		if err := os.Remove(to.path(name + ".signing.crt")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := errors.Join(to.write(name+".key", keyPEM, "replaced"), to.write(name+".crt", certPEM, "replaced")); err != nil {
			return err
		}
	}
	// Before the old ones are gone, of which it tells.
	if err := WriteSecret(to.path(retiredFile), []byte(strings.Join(retired, "\n")+"\n")); err != nil {
		return err
	}
	return to.commit()
}

// hashOf is the SHA-256, in hex, of the first certificate in a file.
func hashOf(text []byte) string {
	block, _ := pem.Decode(text)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}

// readRetired are the hashes of the authorities that there were before.
func readRetired(dir string) []string {
	text, err := os.ReadFile(filepath.Join(dir, retiredFile))
	if err != nil {
		return nil // it is of use to explain refusals, and no more
	}
	return strings.Fields(string(text))
}

// FirstAuthority is the hash, SHA-256 in hex, of the authority of servers that a
// folder had first; empty if it was never replaced. It names the cluster for good.
func FirstAuthority(dir string) string {
	if all := readRetired(dir); len(all) > 0 {
		return all[0] // see moveIn, which begins with it
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// succeed makes p's authorities those in the folder "next", and keeps those of
// before as p.Leaving. Both are trusted.
func (p *PKI) succeed(dir *folder, now time.Time) error {
	next, err := openFolder(dir.path(NextDir))
	if err != nil {
		return err
	}
	defer next.discard()
	p.Leaving = &Leaving{ServerCA: p.ServerCA, ClientCA: p.ClientCA, RequestHeaderCA: p.RequestHeaderCA}
	for i, a := range []**Authority{&p.ServerCA, &p.ClientCA, &p.RequestHeaderCA} {
		name := authorityNames[i]
		for _, file := range []string{name + ".crt", name + ".key"} {
			if !exists(next.path(file)) {
				return fmt.Errorf("the new authority %s is missing, though a rotation has begun (%s): restore it from a backup", next.path(file), dir.path(rotationFile))
			}
		}
		successor, err := ensureSuccessor(next, name, now)
		if err != nil {
			return err
		}
		if err := successor.trustToo(next, name, *a); err != nil {
			return err
		}
		*a = successor
	}
	cross, err := next.read(crossFile)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(cross)
	if block == nil {
		return fmt.Errorf("%s is damaged: restore it from a backup", next.path(crossFile))
	}
	p.Leaving.behind = append([][]byte{block.Bytes}, p.ServerCA.chain()...)
	return next.commit()
}

// trustToo writes the file in which old and new authority are both.
func (a *Authority) trustToo(next *folder, name string, old *Authority) error {
	a.TrustPEM = bytes.Join([][]byte{bytes.TrimSpace(a.CertPEM), bytes.TrimSpace(old.CertPEM), nil}, []byte("\n"))
	a.TrustPath = next.path(name + trustSuffix)
	a.Trusted = []*x509.Certificate{a.Cert, old.Cert}
	old.TrustPEM, old.TrustPath, old.Trusted = a.TrustPEM, a.TrustPath, a.Trusted
	have, err := next.read(name + trustSuffix)
	if err != nil || bytes.Equal(have, a.TrustPEM) {
		return err
	}
	return next.write(name+trustSuffix, a.TrustPEM, "made")
}
