package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// ErrNotRunning is in the error of Fetch when nobody serves the socket.
var ErrNotRunning = errors.New("neither knarr server nor knarr agent runs here")

// fetchTimeout holds when the caller's context has no deadline.
const fetchTimeout = 10 * time.Second

// Fetch asks the process that serves socketPath for its report. When ctx has no
// deadline it gives up after 10 seconds.
func Fetch(ctx context.Context, socketPath string) (*Report, error) {
	if err := checkLength(socketPath); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socketPath)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://knarr"+Path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask for status: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, explain(err, socketPath)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, explain(err, socketPath)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask for status on %s: the server answered %s: %s", socketPath, resp.Status, strings.TrimSpace(string(body)))
	}
	var r Report
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("read the status that %s gave (is it of another version of knarr?): %w", socketPath, err)
	}
	return &r, nil
}

func explain(err error, socketPath string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no socket %s (start one, or name its folder)", ErrNotRunning, socketPath)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: socket %s refused the connection (its process was killed; start it again)", ErrNotRunning, socketPath)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ask for status: socket %s is open to its owner only: run this command as root", socketPath)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("ask for status: the server behind %s did not answer in time: %w", socketPath, err)
	}
	return fmt.Errorf("ask for status on %s: %w", socketPath, err)
}
