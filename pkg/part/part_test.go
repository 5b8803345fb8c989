package part

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/knarr-dev/knarr/pkg/component"
)

func TestFailureOfAComponentIsToldOnceItHappened(t *testing.T) {
	fail := make(chan struct{})
	first := true
	g, err := component.NewGroup(slog.New(slog.DiscardHandler), component.Spec{Class: component.Retried, Component: component.Func("weak", nil, func(ctx context.Context, ready chan<- struct{}) error {
		if first {
			first = false
			<-fail
			return errors.New("too weak")
		}
		close(ready)
		<-ctx.Done()
		return nil
	})})
	if err != nil {
		t.Fatal(err)
	}
	env := &Env{}
	env.SetGroup(g)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()

	given, giveUp := context.WithCancel(t.Context())
	giveUp()
	if err := env.WaitFailed(given, "weak"); err == nil {
		t.Error("a failure is told before there was one")
	}
	if err := env.WaitFailed(given, "nobody"); err == nil {
		t.Error("a failure is told of a component that does not exist")
	}
	told := make(chan error, 1)
	go func() { told <- env.WaitFailed(t.Context(), "weak") }()
	close(fail)
	if err := <-told; err != nil {
		t.Error(err)
	}
	// A component that has recovered has failed before all the same.
	<-g.AllReady()
	if err := env.WaitFailed(t.Context(), "weak"); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
