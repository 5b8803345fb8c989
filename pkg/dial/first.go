package dial

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"
)

// Attempt is one way to connect. It must return soon after ctx has ended.
type Attempt func(ctx context.Context) (net.Conn, error)

// Errors are those of all attempts that failed, in the order of the attempts,
// and last that of the context, if it ended.
type Errors []error

// Error is all of them in one line.
func (e Errors) Error() string {
	all := make([]string, len(e))
	for i, err := range e {
		all[i] = err.Error()
	}
	return strings.Join(all, "; ")
}

// Unwrap has errors.Is and errors.As look at each.
func (e Errors) Unwrap() []error { return e }

// First connects by the first attempt that succeeds, and tells which: its index.
// The attempts begin in their order, each at once when the one before failed and
// otherwise after the pause; those that have begun go on meanwhile (RFC 8305
// does the same with addresses). Once one has won, the others' contexts end, and
// what they connect nevertheless is closed. The error is of type [Errors].
func First(ctx context.Context, pause time.Duration, attempts ...Attempt) (net.Conn, int, error) {
	if len(attempts) == 0 {
		return nil, -1, Errors{errors.New("there is nothing to dial")}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type result struct {
		i    int
		conn net.Conn
		err  error
	}
	results := make(chan result)
	begun, running := 0, 0
	begin := func() {
		i := begun
		begun++
		running++
		go func() {
			conn, err := attempts[i](ctx)
			select {
			case results <- result{i, conn, err}:
			case <-ctx.Done(): // nobody receives any more
				if err == nil {
					conn.Close()
				}
			}
		}()
	}

	errs := make(Errors, len(attempts))
	failed := func(last error) Errors {
		var all Errors
		for _, err := range append(errs, last) {
			if err != nil {
				all = append(all, err)
			}
		}
		return all
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	begin()
	for {
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, r.i, nil
			}
			running--
			errs[r.i] = r.err
			if begun == len(attempts) {
				if running == 0 {
					return nil, -1, failed(nil)
				}
				continue
			}
		case <-timer.C:
			if begun == len(attempts) {
				continue
			}
		case <-ctx.Done():
			return nil, -1, failed(context.Cause(ctx))
		}
		begin()
		timer.Reset(pause)
	}
}
