package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/go-logr/logr"
)

// faults passes on what upstream's rule writer logs, turned down to debug, and
// keeps its last error, which the writer returns to nobody.
type faults struct {
	slog.Handler
	kept *kept
}

type kept struct {
	mu  sync.Mutex
	err error
}

func newFaults(h slog.Handler) faults { return faults{h, &kept{}} }

func (f faults) logger() logr.Logger { return logr.FromSlogHandler(f) }

func (f faults) forget() { f.keep(nil) }

func (f faults) keep(err error) {
	f.kept.mu.Lock()
	defer f.kept.mu.Unlock()
	f.kept.err = err
}

func (f faults) last() error {
	f.kept.mu.Lock()
	defer f.kept.mu.Unlock()
	if f.kept.err == nil {
		return errors.New("upstream's proxy did not say why")
	}
	return f.kept.err
}

// Enabled implements slog.Handler.
func (f faults) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError || l >= slog.LevelDebug && f.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (f faults) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		err := errors.New(r.Message)
		r.Attrs(func(a slog.Attr) bool {
			if e, ok := a.Value.Any().(error); ok {
				err = fmt.Errorf("%s: %w", r.Message, e)
			}
			return true
		})
		f.keep(err)
	}
	if !f.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	r.Level = slog.LevelDebug
	return f.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (f faults) WithAttrs(as []slog.Attr) slog.Handler {
	return faults{f.Handler.WithAttrs(as), f.kept}
}

// WithGroup implements slog.Handler.
func (f faults) WithGroup(name string) slog.Handler { return faults{f.Handler.WithGroup(name), f.kept} }
