// Package flakydisk gives tests a disk that loses what a disk may lose when its
// power goes: everything that was written after the last flush, or some of it,
// in any order.
//
// The disk is a file of a FUSE file system, served by a process of its own; a
// loop device makes it a block device, on which ext4 lies as on any other. The
// kernel's flushes arrive as FSYNC. It needs root, /dev/fuse, loop devices and
// mkfs.ext4.
package flakydisk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Counts are of the disk's whole life.
type Counts struct {
	Writes, Flushes, Cuts int
	Dropped               int // writes that a cut lost, or tore
}

// A Disk has ext4 on it. Its methods may be called by any goroutine.
type Disk struct {
	dir string // where its files are

	mu     sync.Mutex
	server *exec.Cmd
	orders io.WriteCloser
	told   *bufio.Reader
	file   string // of the present power supply
	points []string
}

// New makes a disk of some bytes, with an empty ext4 on it and the power on. dir
// is where its file system is mounted; it is made, and removed by Close.
func New(ctx context.Context, dir string, size int64) (_ *Disk, err error) {
	d := &Disk{dir: dir}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make flaky disk: %w", errors.Join(err, d.Close()))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := d.serve(size); err != nil {
		return nil, err
	}
	if err := d.Power(); err != nil {
		return nil, err
	}
	return d, run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", d.file)
}

func (d *Disk) serve(size int64) error {
	text, err := json.Marshal(spec{Dir: d.dir, Size: size})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{specEnv + "=" + string(text)}
	cmd.Stderr = os.Stderr
	// It ends with its orders, not by what is typed to the test.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if d.orders, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	d.told = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		return err
	}
	d.server = cmd
	return nil
}

// do gives an order and waits until it is carried out.
func (d *Disk) do(o order) (answer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := json.NewEncoder(d.orders).Encode(o); err != nil {
		return answer{}, fmt.Errorf("order the disk to %s: %w", o.Do, err)
	}
	line, err := d.told.ReadBytes('\n')
	if err != nil {
		return answer{}, fmt.Errorf("wait for the disk to %s: %w", o.Do, err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

// Power gives the disk its power back, with what the cut has left on it.
func (d *Disk) Power() error {
	a, err := d.do(order{Do: "power"})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.file = filepath.Join(d.dir, a.File)
	d.mu.Unlock()
	return nil
}

// Cut takes the power away at this moment; from now on every request fails. Of
// each write that was not flushed a part is kept with the probability keep.
func (d *Disk) Cut(keep float64, seed uint64) error {
	_, err := d.do(order{Do: "cut", Keep: keep, Seed: seed})
	return err
}

// Fail makes every request an I/O error, until Heal or Power.
func (d *Disk) Fail() error {
	_, err := d.do(order{Do: "fail"})
	return err
}

// Heal ends what Fail began.
func (d *Disk) Heal() error {
	_, err := d.do(order{Do: "heal"})
	return err
}

// Counts tells what happened to the disk so far.
func (d *Disk) Counts() (Counts, error) {
	a, err := d.do(order{Do: "count"})
	return a.Counts, err
}

// Attach makes the disk a block device and returns its path. [Detach] it as soon
// as it is mounted: it goes with the mount then.
func (d *Disk) Attach(ctx context.Context) (string, error) {
	d.mu.Lock()
	file := d.file
	d.mu.Unlock()
	return Attach(ctx, file)
}

// Attach makes a file a block device.
func Attach(ctx context.Context, file string) (string, error) {
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", file).Output()
	if err != nil {
		return "", told("losetup", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Detach lets a block device go once nobody uses it.
func Detach(device string) error { return run(context.Background(), "losetup", "--detach", device) }

// Mount mounts the disk, as often as it gets its power back.
func (d *Disk) Mount(ctx context.Context, point string) error {
	device, err := d.Attach(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(point, 0o755); err != nil {
		return errors.Join(err, Detach(device))
	}
	err = unix.Mount(device, point, "ext4", unix.MS_NOATIME, "noinit_itable")
	if err = errors.Join(err, Detach(device)); err != nil {
		return fmt.Errorf("mount %s on %s: %w", device, point, err)
	}
	d.mu.Lock()
	d.points = append(d.points, point)
	d.mu.Unlock()
	return nil
}

// Unmount undoes Mount. Processes that used the disk must have ended.
func (d *Disk) Unmount(point string) error {
	if err := Unmount(point); err != nil {
		return fmt.Errorf("unmount flaky disk %s: %w", point, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, p := range d.points {
		if p == point {
			d.points = append(d.points[:i], d.points[i+1:]...)
			break
		}
	}
	return nil
}

// Unmount tries again for a while: a process lets go of its files a moment after
// it has ended, and no event tells when.
func Unmount(point string) error {
	deadline := time.Now().Add(20 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Unmount(point, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		<-time.After(wait)
	}
}

// Close unmounts what is mounted and removes the disk.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, p := range d.points {
		errs = append(errs, unix.Unmount(p, unix.MNT_DETACH))
	}
	d.points = nil
	if d.server != nil {
		errs = append(errs, d.orders.Close(), d.server.Wait())
		d.server = nil
		// It has done so itself, unless it was killed.
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, err)
		}
	}
	if err := os.Remove(d.dir); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, name string, args ...string) error {
	_, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return told(name, err)
	}
	return nil
}

// told adds what a program wrote to stderr.
func told(name string, err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(exit.Stderr))
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Needs skips a test on a machine that cannot make disks.
func Needs(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			t.Skip(err)
		}
	}
}

// ForTest makes a disk that is closed with the test, whose mounts must be gone
// or unused by then.
func ForTest(t testing.TB, dir string, size int64) *Disk {
	t.Helper()
	d, err := New(t.Context(), filepath.Join(dir, "fuse"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
