package component

import (
	"context"
	"net/http"
	"time"
)

// stopTimeout is how long a request may hold up a stop.
const stopTimeout = 2 * time.Second

// ServeHTTP has srv serve until ctx ends, and gives requests that are under way then
// two seconds. serve is its Serve or ServeTLS; the error is what that returns before
// ctx ends.
func ServeHTTP(ctx context.Context, srv *http.Server, serve func() error) error {
	failed := make(chan error, 1)
	go func() { failed <- serve() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer done()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close() // whoever is left asks again
	}
	return nil
}
