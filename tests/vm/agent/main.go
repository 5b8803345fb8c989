// Command agent runs programs in the virtual machine for the tests outside of
// it, which it hears by a virtio port. There is no network between them.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/knarr-dev/knarr/tests/vm/wire"
)

func main() {
	if err := serve("/dev/virtio-ports/" + wire.Port); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1) // systemd starts it again
	}
}

// serve answers until the port fails, which it does when the tests hang up.
func serve(path string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer port.Close()
	// What an earlier boot had begun to say ends here.
	if _, err := port.WriteString("\n"); err != nil {
		return err
	}
	var mu sync.Mutex
	requests := bufio.NewReader(port)
	for {
		line, err := requests.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		var r wire.Request
		if json.Unmarshal(line, &r) != nil {
			continue // the end of what an earlier boot was told
		}
		go func() {
			reply := run(r)
			reply.Boot = strings.TrimSpace(string(boot))
			text, err := json.Marshal(reply)
			if err != nil {
				return // cannot be: it is made of bytes and numbers
			}
			mu.Lock()
			defer mu.Unlock()
			// A port that fails is noticed by the reader.
			_, _ = port.Write(append(text, '\n'))
		}()
	}
}

func run(r wire.Request) wire.Reply {
	reply := wire.Reply{ID: r.ID}
	if len(r.Args) == 0 {
		return reply
	}
	var stdout, stderr bytes.Buffer
	c := exec.Command(r.Args[0], r.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(r.Stdin), &stdout, &stderr
	err := c.Run()
	reply.Stdout, reply.Stderr = stdout.Bytes(), stderr.Bytes()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		reply.Code = exit.ExitCode()
	} else if err != nil {
		reply.Code, reply.Error = -1, err.Error()
	}
	return reply
}
