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
	body, err := Ask(ctx, socketPath, http.MethodGet, Path)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("read the status that %s gave (is it of another version of knarr?): %w", socketPath, err)
	}
	return &r, nil
}

// Watch hands each report of a stream of them to show, until ctx ends, which is no
// error, the stream does, or show fails.
func Watch(ctx context.Context, socketPath, path string, show func(*Report) error) error {
	if err := checkLength(socketPath); err != nil {
		return err
	}
	resp, err := request(ctx, socketPath, http.MethodGet, path)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return explain(err, socketPath)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("watch status on %s: the server answered %s (is it of another version of knarr?)", socketPath, resp.Status)
	}
	for d := json.NewDecoder(resp.Body); ; {
		var r Report
		err := d.Decode(&r)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("watch status on %s: the server has ended", socketPath)
		case err != nil:
			return explain(err, socketPath)
		}
		if err := show(&r); err != nil {
			return err
		}
	}
}

// request asks over the socket. The caller closes the answer's body.
func request(ctx context.Context, socketPath, method, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socketPath)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://knarr"+path, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// Ask asks the process that serves socketPath for something else: what it
// answers with a code of success. It gives up as Fetch does.
func Ask(ctx context.Context, socketPath, method, path string) ([]byte, error) {
	if err := checkLength(socketPath); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
	}
	resp, err := request(ctx, socketPath, method, path)
	if err != nil {
		return nil, explain(err, socketPath)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, explain(err, socketPath)
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("ask for status on %s: the server answered %s: %s", socketPath, resp.Status, strings.TrimSpace(string(body)))
	}
	return body, nil
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
