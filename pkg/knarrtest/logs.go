package knarrtest

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"

	"k8s.io/klog/v2"
)

// silenceUpstream keeps what Kubernetes' own parts log out of a test's output, as
// envtest does, whose parts are other processes. What the test's own code logs with
// klog stays. KNARR_TEST_DEBUG=1 shows all.
//
// It is the process' logger, which must not be set while others log: once, then,
// before the first control plane starts.
var silenceUpstream = sync.OnceFunc(func() {
	if debugging() {
		return
	}
	klog.SetSlogLogger(slog.New(&ownOnly{slog.NewTextHandler(os.Stderr, nil)}))
})

// ownOnly lets pass what was not logged by a part of Kubernetes.
type ownOnly struct{ slog.Handler }

func (h *ownOnly) Handle(ctx context.Context, r slog.Record) error {
	frame, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
	if isUpstream(frame.Function) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h *ownOnly) WithAttrs(as []slog.Attr) slog.Handler { return &ownOnly{h.Handler.WithAttrs(as)} }
func (h *ownOnly) WithGroup(name string) slog.Handler    { return &ownOnly{h.Handler.WithGroup(name)} }

// isUpstream tells of a function, by its name with the package's path, whether it is
// one of a control plane. A part of client-go may be the test's own; what it says at
// the end of a control plane is not worth it.
func isUpstream(function string) bool {
	pkg, ok := strings.CutPrefix(function, "k8s.io/")
	return ok && !strings.HasPrefix(pkg, "sample-")
}
