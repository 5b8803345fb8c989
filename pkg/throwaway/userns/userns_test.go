package userns

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
)

// files are those of the kernel, by path.
type files map[string]string

func (f files) read(path string) ([]byte, error) {
	text, ok := f[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

func TestIDsFollowEachOther(t *testing.T) {
	got := spansOf(1000, []user.SubID{{Name: "a", SubID: 100000, Count: 65536}, {Name: "a", SubID: 300000, Count: 10}})
	want := []span{{0, 1000, 1}, {1, 100000, 65536}, {65537, 300000, 10}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSubordinateIDsAreReadByNameAndNumber(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	text := "other:1000000:65536\n# a remark\nsailor:100000:65536\n1234:200000:65536\npoor:300000:1000\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	rows, err := subordinate(file, "sailor", 1234)
	if err != nil || len(rows) != 2 || rows[0].SubID != 100000 || rows[1].SubID != 200000 {
		t.Errorf("got %v, %v", rows, err)
	}
	for _, c := range []struct {
		file, name, want string
	}{
		{file, "poor", "gives the user poor 1000 ids, and images need 65535: have root run usermod --add-subuids"},
		{file + ".missing", "sailor", "gives the user sailor 0 ids"},
	} {
		if _, err := subordinate(c.file, c.name, 7); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestKernelsThatRefuseAreTold(t *testing.T) {
	const clone, apparmor = "/proc/sys/kernel/unprivileged_userns_clone", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	for _, c := range []struct {
		name  string
		files files
		want  string // "" is no error
	}{
		{"allows", files{"/proc/self/ns/user": "", "/proc/sys/user/max_user_namespaces": "15000\n", clone: "1\n", apparmor: "0\n"}, ""},
		{"none", files{"/proc/self/ns/user": "", "/proc/sys/user/max_user_namespaces": "0\n"}, "sysctl -w user.max_user_namespaces=15000"},
		{"old Debian", files{"/proc/self/ns/user": "", clone: "0\n"}, "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"Ubuntu", files{"/proc/self/ns/user": "", apparmor: "1\n"}, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"no namespaces", files{}, "this kernel has no user namespaces"},
	} {
		err := checkKernel(c.files.read)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestControlGroupsThatAreNotHandedDownAreTold(t *testing.T) {
	const pid = 77
	own := "/user.slice/user-1000.slice/user@1000.service/app.slice/knarr-dev.scope"
	at := func(controllers string) files {
		return files{
			fmt.Sprintf("/proc/%d/cgroup", pid):                  "0::" + own + "\n",
			filepath.Join(cgroupRoot, own, "cgroup.controllers"): controllers + "\n",
			filepath.Join(cgroupRoot, "cgroup.controllers"):      "cpuset cpu io memory pids\n",
		}
	}
	if err := checkScope(at("").read, pid); err != nil {
		t.Error(err)
	}
	if err := checkControllers(at("cpuset cpu io memory pids").read, pid); err != nil {
		t.Error(err)
	}
	if err := checkControllers(at("memory pids").read, pid); err == nil || !strings.Contains(err.Error(), "no controller cpu, cpuset: have root write") {
		t.Errorf("got %v", err)
	}
	v1 := files{fmt.Sprintf("/proc/%d/cgroup", pid): "4:memory:/user.slice\n0::/user.slice\n"}
	if err := checkScope(v1.read, pid); err == nil || !strings.Contains(err.Error(), "need cgroup v2 alone") {
		t.Errorf("got %v", err)
	}
	if _, err := CgroupOf(files{fmt.Sprintf("/proc/%d/cgroup", pid): "4:memory:/a\n"}.read, pid); err == nil {
		t.Error("a process of no v2 group has one")
	}
}
