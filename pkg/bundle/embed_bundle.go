//go:build bundle

package bundle

import (
	_ "embed"
	"errors"
)

// ErrNone says that this program was built without a bundle. This build has
// one, so it is never returned.
var ErrNone = errors.New("no bundle is built into this program")

//go:embed bundle.tar.zst
var embedded []byte

// Embedded returns the archive that was built into the program, or ErrNone
// when it was built without the tag "bundle".
func Embedded() (*Archive, error) { return Open(embedded) }
