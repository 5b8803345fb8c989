//go:build bundle

package bundle_test

import (
	"os"
	"testing"

	"github.com/knarr-dev/knarr/pkg/bundle"
)

// scratch is a folder to be removed at once: thousands of them would fill the
// disk's queue and be measured too.
func scratch(b *testing.B) string {
	dir, err := os.MkdirTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

// The first start on a machine waits for this.
func BenchmarkUnpackFresh(b *testing.B) {
	a, err := bundle.Embedded()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		dir := scratch(b)
		b.StartTimer()
		if _, err := a.Unpack(dir); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}

// Every later start waits for this.
func BenchmarkUnpackAgain(b *testing.B) {
	a, err := bundle.Embedded()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if _, err := a.Unpack(dir); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		a, err := bundle.Embedded()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := a.Unpack(dir); err != nil {
			b.Fatal(err)
		}
	}
}

// The disk's share, which happens after the start.
func BenchmarkSettle(b *testing.B) {
	a, err := bundle.Embedded()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		dir := scratch(b)
		u, err := a.Unpack(dir)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := u.Settle(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}

// A file that is unpacked only when it is asked for.
func BenchmarkPathOfLazyFile(b *testing.B) {
	a, err := bundle.Embedded()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		dir := scratch(b)
		u, err := a.Unpack(dir)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := u.Path("doc/LICENSES"); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		os.RemoveAll(dir)
		b.StartTimer()
	}
}
