//go:build !bundle

package bundle

import "errors"

// ErrNone says that this program was built without a bundle.
var ErrNone = errors.New("no bundle is built into this program: build with -tags bundle after " +
	"`go run github.com/knarr-dev/knarr/cmd/knarr-bundle`, or hand an archive to bundle.Open")

// Embedded returns the archive that was built into the program, or ErrNone
// when it was built without the tag "bundle".
func Embedded() (*Archive, error) { return nil, ErrNone }
