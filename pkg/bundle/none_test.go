//go:build !bundle

package bundle_test

import (
	"errors"
	"testing"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

func TestProgramWithoutBundleSaysSo(t *testing.T) {
	if _, err := bundle.Embedded(); !errors.Is(err, bundle.ErrNone) {
		t.Errorf("Embedded: %v, want ErrNone", err)
	}
}
