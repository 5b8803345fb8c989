package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
)

// Claim records changes that are about to be made, apart from those that are
// there already and not on record: somebody else made them, and they stay when
// ours are undone. For a folder or a file, the parents that are missing are
// recorded too. It costs a look at each, and writes only if something is new.
func (l *Ledger) Claim(changes ...Change) error {
	var ours []Change
	for _, c := range changes {
		if l.has(c.Kind, c.Name) || there(c) {
			continue
		}
		if c.Kind == KindFile || c.Kind == KindDir {
			ours = append(ours, l.missingParents(c.Name)...)
		}
		ours = append(ours, c)
	}
	return l.Record(ours...)
}

// missingParents are the folders above path that will have to be made, the
// topmost first.
func (l *Ledger) missingParents(path string) []Change {
	var made []Change
	for p := filepath.Dir(path); existing(p) != p; p = filepath.Dir(p) {
		if !l.has(KindDir, p) {
			made = append(made, Change{Kind: KindDir, Name: p})
		}
	}
	slices.Reverse(made)
	return made
}

// there tells whether something of that kind and name exists. Tables and
// addresses have names that only Knarr gives.
func there(c Change) bool {
	switch c.Kind {
	case KindFile, KindDir, KindCgroup:
		_, err := os.Lstat(c.Name)
		return !errors.Is(err, fs.ErrNotExist)
	case KindLink:
		_, err := netlink.LinkByName(c.Name)
		return err == nil
	}
	return false
}
