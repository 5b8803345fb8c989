package loadbalancer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/knarr-dev/knarr/pkg/durable"
)

// memory is what File holds.
type memory struct {
	Servers []string `json:"servers"`
}

// remembered reads the servers of an earlier run. An error means none.
func remembered(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the API servers of last time: %w", err)
	}
	var m memory
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("read the API servers of last time in %s: %w", path, err)
	}
	return sound(m.Servers), nil
}

// remember replaces the file in one step, on disk when it returns.
func remember(path string, servers []string) error {
	if path == "" {
		return nil
	}
	text, err := json.Marshal(memory{servers})
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := durable.Replace(path, 0o600, bytes.NewReader(append(text, '\n'))); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// sound leaves out what is no host:port or is there twice.
func sound(addrs []string) []string {
	var list []string
	for _, addr := range addrs {
		if checkServer(addr) == nil && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

func checkServer(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return errors.New("host or port is missing")
	}
	return nil
}
