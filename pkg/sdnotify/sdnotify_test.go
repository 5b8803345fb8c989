package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets the test executable be a service that systemd has started.
func TestMain(m *testing.M) {
	if os.Getenv("SDNOTIFY_TEST_SERVICE") == "" {
		os.Exit(m.Run())
	}
	// systemd knows the process id before exec; here only the process does.
	if os.Getenv("LISTEN_PID") == "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	fds := ListenFDs()
	for _, name := range []string{"dns", "unknown"} {
		for _, f := range fds[name] {
			text, err := io.ReadAll(f)
			fmt.Println(name, string(text), err)
		}
	}
	again := ListenFDs()
	fmt.Println(len(fds), len(again), os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_PID")+os.Getenv("LISTEN_FDNAMES"))
}

// systemd is the other end of the notify socket.
type systemd struct{ conn *net.UnixConn }

func listen(t *testing.T, name string) *systemd {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return &systemd{conn}
}

// next waits for a message and the files that came with it.
func (s *systemd) next(t *testing.T) (string, []*os.File) {
	t.Helper()
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return string(buf[:n]), files
}

func TestSystemdHearsWhatHappensInOrder(t *testing.T) {
	for kind, name := range map[string]string{
		"path":     filepath.Join(t.TempDir(), "notify"),
		"abstract": "@knarr-sdnotify-test-" + strconv.Itoa(os.Getpid()),
	} {
		t.Run(kind, func(t *testing.T) {
			s := listen(t, name)
			n := FromEnv()
			if err := errors.Join(n.Status("waiting for\nthe store"), n.Ready(), n.Stopping(), n.RemoveFDs("dns")); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"STATUS=waiting for the store", "READY=1", "STOPPING=1", "FDSTOREREMOVE=1\nFDNAME=dns"} {
				if got, _ := s.next(t); got != want {
					t.Errorf("heard %q, want %q", got, want)
				}
			}
		})
	}
}

func TestNobodyElseInTheProcessFindsTheVariables(t *testing.T) {
	listen(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	if FromEnv() == nil {
		t.Fatal("no notifier")
	}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if value, set := os.LookupEnv(name); set {
			t.Errorf("%s=%s is still set", name, value)
		}
	}
	if FromEnv() != nil {
		t.Error("a second notifier came out of the environment")
	}
}

func TestOutsideOfSystemdNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n := FromEnv()
	if n != nil {
		t.Fatal("there is a notifier")
	}
	called := func() error { t.Error("health was asked for"); return nil }
	err := errors.Join(n.Ready(), n.Stopping(), n.Status("x"), n.StoreFDs("x", os.Stdin), n.RemoveFDs("x"),
		n.Barrier(t.Context()), n.RunWatchdog(t.Context(), called))
	if err != nil || ListenFDs() != nil {
		t.Error(err)
	}
}

func TestWatchdogIsSilentWhileUnhealthy(t *testing.T) {
	s := listen(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	n := FromEnv()
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	done := make(chan error)
	go func() {
		done <- n.RunWatchdog(ctx, func() error {
			if asked++; asked < 4 {
				return errors.New("the store hangs")
			}
			return n.Status(fmt.Sprint("asked ", asked))
		})
	}()
	for _, want := range []string{"STATUS=asked 4", "WATCHDOG=1", "STATUS=asked 5", "WATCHDOG=1"} {
		if got, _ := s.next(t); got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWatchdogOfAnotherProcessIsNotOurs(t *testing.T) {
	listen(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", "1")
	if d := FromEnv().Watchdog(); d != 0 {
		t.Error(d)
	}
}

func TestStoredSocketsStillAnswer(t *testing.T) {
	s := listen(t, filepath.Join(t.TempDir(), "notify"))
	n := FromEnv()
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	file, err := server.File()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.StoreFDs("dns", file); err != nil {
		t.Fatal(err)
	}
	// The process ends, a query comes, and the next process gets the socket.
	address := server.LocalAddr().String()
	server.Close()
	file.Close()
	client, err := net.Dial("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("query")); err != nil {
		t.Fatal(err)
	}

	state, files := s.next(t)
	if state != "FDSTORE=1\nFDPOLL=0\nFDNAME=dns" || len(files) != 1 {
		t.Fatalf("heard %q with %d files", state, len(files))
	}
	again, err := net.FilePacketConn(files[0])
	files[0].Close()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	buf := make([]byte, 16)
	if k, _, err := again.ReadFrom(buf); err != nil || string(buf[:k]) != "query" {
		t.Errorf("the new process reads %q, %v", buf[:k], err)
	}
}

func TestDescriptorNamesThatSystemdWouldRefuseAreRefused(t *testing.T) {
	listen(t, filepath.Join(t.TempDir(), "notify"))
	n := FromEnv()
	for _, name := range []string{"", "a:b", "a\nb", strings.Repeat("x", 256)} {
		if n.StoreFDs(name, os.Stdin) == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

func TestBarrierWaitsUntilSystemdHasRead(t *testing.T) {
	s := listen(t, filepath.Join(t.TempDir(), "notify"))
	n := FromEnv()
	done := make(chan error)
	go func() { done <- n.Barrier(t.Context()) }()
	state, files := s.next(t)
	if state != "BARRIER=1" || len(files) != 1 {
		t.Fatalf("heard %q with %d files", state, len(files))
	}
	select {
	case err := <-done:
		t.Fatal("returned before systemd was through:", err)
	default:
	}
	files[0].Close()
	if err := <-done; err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- n.Barrier(ctx) }()
	_, files = s.next(t)
	defer files[0].Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestServiceGetsItsDescriptorsByName(t *testing.T) {
	service := exec.Command(os.Args[0])
	service.Env = append(os.Environ(), "SDNOTIFY_TEST_SERVICE=1", "LISTEN_FDS=3", "LISTEN_FDNAMES=dns:dns")
	for i := range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(w, "pipe", i)
		w.Close()
		defer r.Close()
		service.ExtraFiles = append(service.ExtraFiles, r)
	}
	out, err := service.CombinedOutput()
	if err != nil {
		t.Fatal(err, string(out))
	}
	if got, want := string(out), "dns pipe0 <nil>\ndns pipe1 <nil>\nunknown pipe2 <nil>\n2 0 \n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestDescriptorsOfAnotherProcessAreNotTaken(t *testing.T) {
	t.Setenv("LISTEN_PID", "1")
	t.Setenv("LISTEN_FDS", "1")
	if fds := ListenFDs(); fds != nil {
		t.Error(fds)
	}
}
