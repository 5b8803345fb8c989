package throwaway

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	many  = flag.Int("many", 0, "clusters in a row, and so many rounds of kills; 0 skips both, which take minutes")
	seed  = flag.Uint64("seed", uint64(time.Now().UnixNano()), "decides the moments of kills")
	about = "give -many 100; make long does"
)

// used are numbers of the whole machine, which others change as well.
type used struct{ files, inotify int }

func inUse(t *testing.T) used {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err != nil {
		t.Fatal(err)
	}
	var u used
	if u.files, err = strconv.Atoi(strings.Fields(string(text))[0]); err != nil {
		t.Fatal(err)
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.Contains(to, "inotify") {
			u.inotify++
		}
	}
	return u
}

func TestManyClustersInARowAndAtOnceLeaveTheMachineAsItWas(t *testing.T) {
	if *many == 0 {
		t.Skip(about)
	}
	u := newUser(t)
	before := inUse(t)
	for i := range *many {
		if out, errs, code := u.try("run", "--", "true"); code != 0 || out+errs != "" {
			t.Fatalf("run %d of %d ended with %d: %s%s", i+1, *many, code, out, errs)
		}
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			out, errs, code := u.try("run", "--", "kubectl", "get", "nodes", "-o", "name")
			if code != 0 || out != "node/server\n" || errs != "" {
				t.Errorf("%d of four at once ended with %d: %s%s", i, code, out, errs)
			}
		})
	}
	all.Wait()
	after := inUse(t)
	t.Logf("in use were %+v, and are %+v", before, after)
	// What a cluster leaves would be there a hundred times.
	if after.inotify > before.inotify+*many/2 || after.files > before.files+5*(*many) {
		t.Errorf("in use were %+v, and are %+v", before, after)
	}
}

func TestNextRunSweepsWhatAKillAtAnyMomentLeft(t *testing.T) {
	if *many == 0 {
		t.Skip(about)
	}
	t.Logf("-seed=%d", *seed)
	chance := rand.New(rand.NewPCG(*seed, 0))
	u := newUser(t)
	before := u.machine(t)
	// From the command's start until after its end, as long as they take here.
	begin := time.Now()
	u.knarr(t, "run", "--", "true")
	life := time.Since(begin)
	for i := range (*many + 1) / 2 {
		moment := time.Duration(chance.Int64N(int64(life)))
		whom := []string{"knarr", "the keeper", "both"}[chance.IntN(3)]
		what := fmt.Sprintf("round %d: %s killed after %s", i+1, whom, moment.Round(time.Millisecond))
		u.killAt(t, moment, whom)
		if out, errs, code := u.try("run", "--", "true"); code != 0 || out+errs != "" {
			t.Errorf("%s: the next run ended with %d: %s%s", what, code, out, errs)
		}
		// A process ends by itself where its partner was killed, in its own time.
		deadline := time.Now().Add(limit)
		left := difference(before, u.machine(t))
		for len(left) > 0 && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
			left = difference(before, u.machine(t))
		}
		if len(left) > 0 {
			t.Fatalf("%s:\n%s", what, strings.Join(left, "\n"))
		}
	}
}

// killAt starts a cluster and kills who keeps it, some time after.
func (u *user) killAt(t *testing.T, moment time.Duration, whom string) {
	t.Helper()
	cmd := u.command("run", "--name", "doomed", "--", "true")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(moment) // what is tested
	var record struct{ Keeper int }
	text, err := os.ReadFile(filepath.Join(u.dir, "doomed", "cluster.json"))
	if err == nil && json.Unmarshal(text, &record) == nil && record.Keeper > 0 && whom != "knarr" {
		kill(t, record.Keeper)
	}
	if whom != "the keeper" {
		kill(t, cmd.Process.Pid)
	}
	_ = cmd.Wait() // killed, or told that its keeper was
}
