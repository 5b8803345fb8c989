// Package logs makes one structured stream of what Knarr and every upstream
// part say: klog, logrus, gRPC and the standard logger end in the same
// log/slog handler, with the chatter of upstream parts turned down.
package logs

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/grpclog"
	ctrlruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
)

// Options says how much is told, and how.
type Options struct {
	// Debug also tells what upstream parts say at their info and warning levels.
	Debug bool
	// JSON writes one object a line instead of key=value text.
	JSON bool
}

// Setup routes every logger of the process to w and returns ours. The routes
// are process-wide: call it once, before any upstream part starts.
//
// Upstream parts speak to their developers: their info and warning lines become
// debug lines here, and their error lines, most of which name something that is
// retried, become debug lines too: what fails for good is returned as an error and told by us.
func Setup(w io.Writer, o Options) *slog.Logger {
	level := slog.LevelInfo
	if o.Debug {
		level = slog.LevelDebug
	}
	ho := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, ho)
	if o.JSON {
		h = slog.NewJSONHandler(w, ho)
	}
	l := slog.New(h)
	slog.SetDefault(l)

	up := &upstream{next: h}
	klog.SetSlogLogger(slog.New(up))
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	logrus.AddHook(&logrusHook{h: up})
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(up, slog.LevelInfo).Writer())
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	// klog has already told it; the default handlers only add sleeps.
	ctrlruntime.ReallyCrash = false
	return l
}

// upstream turns the records of upstream parts down.
type upstream struct {
	next slog.Handler
}

func (u *upstream) Enabled(ctx context.Context, l slog.Level) bool {
	return u.next.Enabled(ctx, lowered(l))
}

func (u *upstream) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lowered(r.Level)
	if !u.next.Enabled(ctx, r.Level) {
		return nil
	}
	return u.next.Handle(ctx, r)
}

func (u *upstream) WithAttrs(as []slog.Attr) slog.Handler {
	return &upstream{next: u.next.WithAttrs(as)}
}

func (u *upstream) WithGroup(name string) slog.Handler {
	return &upstream{next: u.next.WithGroup(name)}
}

// lowered: what upstream calls an error is worth an operator's look only with
// --debug; failures that matter reach us as returned errors, in `knarr status`.
func lowered(l slog.Level) slog.Level {
	switch {
	case l > slog.LevelError:
		return slog.LevelError
	default:
		return slog.LevelDebug
	}
}

// logrusHook hands containerd's and kine's records to a slog handler.
type logrusHook struct {
	h slog.Handler
}

func (k *logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (k *logrusHook) Fire(e *logrus.Entry) error {
	level := slog.LevelInfo
	switch {
	case e.Level <= logrus.FatalLevel:
		level = slog.LevelError + 1
	case e.Level == logrus.ErrorLevel:
		level = slog.LevelError
	case e.Level == logrus.WarnLevel:
		level = slog.LevelWarn
	case e.Level >= logrus.DebugLevel:
		level = slog.LevelDebug
	}
	ctx := context.Background()
	if !k.h.Enabled(ctx, level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	for key, v := range e.Data {
		r.AddAttrs(slog.Any(key, v))
	}
	return k.h.Handle(ctx, r)
}
