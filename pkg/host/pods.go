package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pods ends what runs in containers, and takes away what it held, with nothing
// but the kernel: no containerd has to run for it, and none may.
type Pods struct {
	// DataDir and RunDir are Knarr's, KubeletDir is the kubelet's, as they appear
	// in /proc.
	DataDir, RunDir, KubeletDir string
	// Cgroups are the groups of all pods: see PodCgroups. What is in them is ended.
	Cgroups []string
	// Grace is how long containers get to end by SIGTERM. Default: none.
	Grace time.Duration
}

// check keeps a forgotten folder from meaning the whole machine.
func (p Pods) check() error {
	for _, dir := range []string{p.DataDir, p.RunDir, p.KubeletDir} {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return fmt.Errorf("end pods: %q is no folder of Knarr's own", dir)
		}
	}
	return nil
}

const (
	shimProgram = "containerd-shim-runc-v2"
	// pauseProgram holds a pod's namespaces, and ends after its containers.
	pauseProgram = "pause"
	cniCache     = "/var/lib/cni/results"
	bridgeLink   = "cni0"
)

// Stop ends every container: SIGTERM first, as the kubelet would, then SIGKILL
// for what is left after the grace; then the pods' own processes and the shims.
// Hooks (preStop) are not run. It returns how many containers it found.
func (p Pods) Stop(ctx context.Context) (int, error) {
	if err := p.check(); err != nil {
		return 0, err
	}
	shims := p.shims()
	inits := childrenOf(shims)
	containers := slices.DeleteFunc(slices.Clone(inits), func(pid int) bool { return comm(pid) == pauseProgram })
	if err := end(ctx, containers, p.Grace); err != nil {
		return len(containers), err
	}
	// Kills come in rounds: a process may have been forked in the meantime.
	for range 10 {
		left := append(childrenOf(p.shims()), p.cgroupProcesses()...)
		left = append(left, p.shims()...)
		if len(left) == 0 {
			return len(containers), nil
		}
		if err := end(ctx, left, 0); err != nil {
			return len(containers), err
		}
	}
	return len(containers), errors.New("end pods: processes keep coming back; does another Knarr run here?")
}

// Clean takes away what the pods held: mounts, network namespaces and links, and
// the run folder with containerd's state. Images, volumes' data and the store
// stay. It is as if the machine had started anew.
func (p Pods) Clean() error {
	if err := p.check(); err != nil {
		return err
	}
	namespaces := p.namespaces()
	var errs []error
	mounts := new(Machine).mountTable()
	for _, mt := range slices.Backward(mounts) {
		if within(mt.point, p.RunDir) || within(mt.point, p.DataDir) && mt.point != p.DataDir || within(mt.point, p.KubeletDir) && mt.point != p.KubeletDir || slices.Contains(namespaces, mt.point) {
			err := unix.Unmount(mt.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			// One above it may have taken it along.
			if err = ignore(err, unix.EINVAL, unix.ENOENT); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", mt.point, err))
			}
		}
	}
	for _, ns := range namespaces {
		if err := ignore(os.Remove(ns), fs.ErrNotExist); err != nil {
			errs = append(errs, fmt.Errorf("remove network namespace: %w", err))
		}
	}
	errs = append(errs, deletePorts(bridgeLink))
	// What libcni noted of our network; the rest of its folder is others'.
	notes, _ := filepath.Glob(filepath.Join(cniCache, "knarr-*")) // the pattern is fine
	for _, path := range append(notes, p.sockets()...) {
		errs = append(errs, ignore(os.Remove(path), fs.ErrNotExist))
	}
	return errors.Join(append(errs, new(Machine).removeTree(p.RunDir))...)
}

// shims are the processes that each look after one pod's containers.
func (p Pods) shims() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		exe = strings.TrimSuffix(exe, " (deleted)")
		if err == nil && filepath.Base(exe) == shimProgram && within(exe, filepath.Join(p.DataDir, "bundle")) {
			all = append(all, pid)
		}
	}
	return all
}

// bundles are the folders of the containers that the shims were given.
func (p Pods) bundles() []string {
	all, _ := filepath.Glob(filepath.Join(p.RunDir, "containerd", "io.containerd.runtime.v2.task", "*", "*")) // the pattern is fine
	return all
}

// namespaces are the network namespaces of the pods, as paths.
func (p Pods) namespaces() []string {
	var all []string
	add := func(path string) {
		// Names of mounts have no links in them.
		if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
			path = filepath.Join(dir, filepath.Base(path))
		}
		if strings.HasPrefix(filepath.Base(path), "cni-") && !slices.Contains(all, path) {
			all = append(all, path)
		}
	}
	for _, dir := range p.bundles() {
		var spec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
		if b, err := os.ReadFile(filepath.Join(dir, "config.json")); err == nil && json.Unmarshal(b, &spec) == nil {
			for _, ns := range spec.Linux.Namespaces {
				if ns.Type == "network" && ns.Path != "" {
					add(ns.Path)
				}
			}
		}
	}
	notes, _ := filepath.Glob(filepath.Join(cniCache, "knarr-*")) // the pattern is fine
	for _, file := range notes {
		var note struct {
			NetNS string `json:"netns"`
		}
		if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &note) == nil && note.NetNS != "" {
			add(note.NetNS)
		}
	}
	return all
}

// sockets are those of the shims, which lie outside of the run folder.
func (p Pods) sockets() []string {
	var all []string
	for _, dir := range p.bundles() {
		var boot struct{ Address string }
		if b, err := os.ReadFile(filepath.Join(dir, "bootstrap.json")); err == nil && json.Unmarshal(b, &boot) == nil {
			if path, ok := strings.CutPrefix(boot.Address, "unix://"); ok && !slices.Contains(all, path) {
				all = append(all, path)
			}
		}
	}
	return all
}

// deletePorts removes the links that hang on a bridge. Those of namespaces that
// have gone go by themselves, but only after a while.
func deletePorts(bridge string) error {
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return nil // there is none
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index && l.Type() == "veth" {
			if err := ignore(netlink.LinkDel(l), unix.ENODEV, unix.EINVAL); err != nil {
				errs = append(errs, fmt.Errorf("delete link %s: %w", l.Attrs().Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// cgroupProcesses are those in pods' control groups: a container with the host's
// process ids leaves some behind its first one.
func (p Pods) cgroupProcesses() []int {
	var all []int
	for _, dir := range p.Cgroups {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return nil
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs")) // gone by now
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil && pid != 0 && pid != os.Getpid() && !slices.Contains(all, pid) {
					all = append(all, pid)
				}
			}
			return nil
		})
	}
	return all
}

// PodCgroups are where the groups of all pods lie, in every tree. With the
// driver systemd its slice is one.
func PodCgroups(driver string) []string {
	name := "kubepods"
	if driver == DriverSystemd {
		name = "kubepods.slice"
	}
	c := new(Machine).cgroups()
	if c.Mode == CgroupV2 {
		return []string{filepath.Join(c.Mount, name)}
	}
	var all []string
	entries, _ := os.ReadDir(cgroupDir) // none without the folder
	for _, e := range entries {
		if e.IsDir() { // a link leads to another of them
			all = append(all, filepath.Join(cgroupDir, e.Name(), name))
		}
	}
	return all
}

func childrenOf(parents []int) []int {
	if len(parents) == 0 {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && slices.Contains(parents, parentOf(pid)) {
			all = append(all, pid)
		}
	}
	return all
}

// parentOf reads the fourth field of stat; the second may hold anything.
func parentOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, rest, _ := strings.Cut(string(b[max(0, strings.LastIndexByte(string(b), ')')):]), ") ")
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(f[1])
	return parent
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // it may have ended
	return strings.TrimSpace(string(b))
}

// Holder is the process that has locked a data dir, 0 if there is none that
// this process can see.
func Holder(dataDir string) int { return new(Machine).lockHolder(dataDir) }

// End ends a process: by SIGTERM, and after the grace by SIGKILL. It returns
// when the process has ended. One that is no more is no error.
func End(ctx context.Context, pid int, grace time.Duration) error {
	return end(ctx, []int{pid}, grace)
}

// end ends processes together. Descriptors stand for them, so that a number
// that is given anew harms nobody.
func end(ctx context.Context, pids []int, grace time.Duration) error {
	var alive []unix.PollFd
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return fmt.Errorf("end process %d: %w", pid, err)
		}
		defer unix.Close(fd)
		alive = append(alive, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for _, sent := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, killPatience}} {
		if sent.signal == unix.SIGTERM && grace == 0 {
			continue
		}
		for _, p := range alive {
			if err := unix.PidfdSendSignal(int(p.Fd), sent.signal, nil, 0); ignore(err, unix.ESRCH) != nil {
				return fmt.Errorf("end a process: %w", err)
			}
		}
		var err error
		if alive, err = await(ctx, alive, sent.wait); err != nil || len(alive) == 0 {
			return err
		}
	}
	return fmt.Errorf("%d processes do not end even when they are killed: their disk or network file system may hang", len(alive))
}

// killPatience is how long the kernel may take to end a killed process.
const killPatience = 30 * time.Second

// await waits until all have ended, and returns those that have not in time.
func await(ctx context.Context, alive []unix.PollFd, limit time.Duration) ([]unix.PollFd, error) {
	deadline := time.Now().Add(limit)
	for len(alive) > 0 {
		left := time.Until(deadline)
		if left <= 0 {
			return alive, nil
		}
		// Now and then a look whether the caller still wants it.
		_, err := unix.Poll(alive, int(min(left, time.Second).Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return alive, fmt.Errorf("wait for processes to end: %w", err)
		}
		alive = slices.DeleteFunc(alive, func(p unix.PollFd) bool { return p.Revents != 0 })
		if ctx.Err() != nil {
			return alive, fmt.Errorf("wait for processes to end: %w", context.Cause(ctx))
		}
	}
	return nil, nil
}
