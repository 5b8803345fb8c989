package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	memory   = "3072" // MiB
	lifetime = "3h"   // of a machine whose test was killed
	// clockTries: on a busy machine Linux may measure the emulated timers wrong
	// when it boots, and its clock then runs many times too fast or too slow.
	clockTries = 5
	clockProbe = 5 * time.Second
)

// Machine is a running virtual machine.
type Machine struct {
	dir  string // its sockets, disk and console's log
	api  int    // port of this machine's loopback that leads to the API server
	qemu *exec.Cmd
	done chan struct{} // closed when qemu has ended
	err  error         // of qemu's end; read it after done
	*guest
}

// startMachine starts a machine with a disk of its own over base, and a second
// one with the files of payload. The caller closes it.
func startMachine(ctx context.Context, image, dir, payload string) (*Machine, error) {
	m := &Machine{dir: dir, done: make(chan struct{})}
	disk := filepath.Join(dir, "disk.qcow2")
	if err := tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(image, "base.raw"), disk); err != nil {
		return nil, err
	}
	var err error
	if m.api, err = freePort(); err != nil {
		return nil, err
	}
	accel := os.Getenv("KNARR_VM_ACCEL")
	if accel == "" {
		accel = "tcg,thread=multi,tb-size=512"
	}
	port := filepath.Join(dir, "agent.sock")
	// Nothing leaves: restrict lets only the forwarded port through. The clock is
	// a timer that Linux need not measure against another one.
	m.qemu = exec.Command("timeout", "--kill-after=10", lifetime, "nice", "-n", "10", "qemu-system-x86_64",
		"-name", "knarr-vm", "-M", "pc,usb=off", "-accel", accel, "-cpu", "max", "-smp", "1", "-m", memory,
		"-nodefaults", "-display", "none", "-serial", "file:"+m.console(), "-monitor", "unix:"+m.monitor()+",server,nowait",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd"),
		"-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off tsc=unstable clocksource=acpi_pm quiet",
		"-drive", "file="+disk+",if=virtio,format=qcow2,cache=unsafe,discard=unmap",
		"-drive", "file="+payload+",if=virtio,format=raw,readonly=on",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path="+port+",server=on,wait=off", "-device", "virtserialport,chardev=agent,name="+agentPort,
		"-netdev", fmt.Sprintf("user,id=n0,restrict=on,net=10.0.2.0/24,host=10.0.2.2,hostfwd=tcp:127.0.0.1:%d-10.0.2.15:6443", m.api),
		"-device", "virtio-net-pci,netdev=n0")
	said, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	m.qemu.Stdout, m.qemu.Stderr = said, said
	if err := m.qemu.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	go func() {
		m.err = m.qemu.Wait()
		close(m.done)
	}()
	if m.guest, err = m.dial(ctx, port); err != nil {
		m.close()
		return nil, err
	}
	if err := m.settle(ctx, ""); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) console() string { return filepath.Join(m.dir, "console.log") }
func (m *Machine) monitor() string { return filepath.Join(m.dir, "monitor.sock") }

// dial connects to the agent's port, which qemu makes in its first moments.
func (m *Machine) dial(ctx context.Context, port string) (*guest, error) {
	for {
		conn, err := net.Dial("unix", port)
		if err == nil {
			return newGuest(conn), nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-m.done:
			return nil, m.ended()
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to qemu: %w", err)
		}
	}
}

func (m *Machine) ended() error {
	log, _ := os.ReadFile(filepath.Join(m.dir, "qemu.log"))
	return fmt.Errorf("qemu ended: %w\n%s", m.err, log)
}

// settle waits until the machine runs in another boot than that before, with a
// clock as fast as ours.
func (m *Machine) settle(ctx context.Context, before string) error {
	for range clockTries {
		boot, err := m.awaitBoot(ctx, before)
		if err != nil {
			return fmt.Errorf("%w; the end of its console:\n%s", err, m.consoleTail())
		}
		rate, err := m.clockRate(ctx)
		if err != nil {
			return err
		}
		if rate > 0.5 && rate < 1.3 {
			return nil
		}
		before = boot
		if err := m.reset(); err != nil {
			return err
		}
	}
	return fmt.Errorf("the machine's clock ran at the wrong speed after each of %d boots: is this machine too busy?", clockTries)
}

// clockRate is how many of its seconds pass in one of ours.
func (m *Machine) clockRate(ctx context.Context) (float64, error) {
	uptime := func() (float64, time.Time, error) {
		out, err := m.run(ctx, nil, "cat", "/proc/uptime")
		var seconds float64
		if err == nil {
			_, err = fmt.Sscan(out, &seconds)
		}
		return seconds, time.Now(), err
	}
	a, began, err := uptime()
	if err != nil {
		return 0, err
	}
	time.Sleep(clockProbe) // what is measured is time itself
	b, ended, err := uptime()
	return (b - a) / ended.Sub(began).Seconds(), err
}

// reset cuts the machine's power and starts it.
func (m *Machine) reset() error {
	conn, err := net.Dial("unix", m.monitor())
	if err != nil {
		return fmt.Errorf("reset machine: %w", err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "system_reset\n"); err != nil {
		return fmt.Errorf("reset machine: %w", err)
	}
	// The monitor echoes, obeys and prompts.
	var said bytes.Buffer
	for strings.Count(said.String(), "(qemu)") < 2 {
		if _, err := io.CopyN(&said, conn, 1); err != nil {
			return fmt.Errorf("reset machine: %w", err)
		}
	}
	return nil
}

func (m *Machine) consoleTail() string {
	text, err := os.ReadFile(m.console())
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "")
}

// close ends the machine.
func (m *Machine) close() {
	if m.guest != nil {
		m.guest.close()
	}
	_ = m.qemu.Process.Signal(os.Interrupt) // it may have ended; timeout passes it on
	select {
	case <-m.done:
	case <-time.After(10 * time.Second):
		_ = m.qemu.Process.Signal(os.Kill)
		<-m.done
	}
}

// freePort finds a port that nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("a TCP listener without a port")
	}
	return addr.Port, nil
}

// tool runs a program of this machine.
func tool(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}
