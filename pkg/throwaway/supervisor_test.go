package throwaway

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// say sends a message as a server does, and returns once it was heard.
func say(t *testing.T, s *supervisor, path, message string, files ...*os.File) {
	t.Helper()
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, heard := s.count("")
	if err := unix.Sendmsg(socket, []byte(message), rights, &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatal(err)
	}
	<-heard
}

func TestSupervisorHearsWhatAServerSaysAndKeepsItsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	s, err := listenNotify(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()

	say(t, s, path, "STATUS=starting")
	say(t, s, path, "FDSTORE=1\nFDNAME=pipe\n", out)
	out.Close()
	for range 2 {
		say(t, s, path, "READY=1\nSTATUS=ready\n")
	}
	for line, want := range map[string]int{"READY=1": 2, "STATUS=starting": 1, "STOPPING=1": 0} {
		if got, _ := s.count(line); got != want {
			t.Errorf("%s was heard %d times, want %d", line, got, want)
		}
	}

	kept := s.takeKept()
	if len(kept) != 1 || kept[0].Name() != "pipe" {
		t.Fatalf("kept are %v", kept)
	}
	if _, err := kept[0].WriteString("through"); err != nil {
		t.Fatal(err)
	}
	kept[0].Close()
	got := make([]byte, 7)
	if _, err := in.Read(got); err != nil || string(got) != "through" {
		t.Errorf("through the kept file came %q: %v", got, err)
	}
	if again := s.takeKept(); len(again) > 0 {
		t.Errorf("what was taken is still kept: %v", again)
	}
}

func TestSupervisorTakesThePlaceOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for range 2 {
		s, err := listenNotify(path)
		if err != nil {
			t.Fatal(err)
		}
		say(t, s, path, "READY=1")
		s.close()
	}
}
