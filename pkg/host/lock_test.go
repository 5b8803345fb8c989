package host

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain lets the test executable be the other process of a test.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HOST_TEST_HOLD_LOCK"); dir != "" {
		if _, err := TakeLock(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestSecondProcessOnADataDirIsToldOfTheFirst(t *testing.T) {
	dir := t.TempDir() + "/data"
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "HOST_TEST_HOLD_LOCK="+dir)
	in, _ := other.StdinPipe()
	out, _ := other.StdoutPipe()
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatal(line, err)
	}

	_, err := TakeLock(dir)
	var inUse *InUseError
	if !errors.As(err, &inUse) || inUse.PID != other.Process.Pid {
		t.Errorf("err = %v", err)
	}
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("kill %d", other.Process.Pid)) {
		t.Errorf("the error does not say what to do: %v", err)
	}

	if pid := new(Machine).lockHolder(dir); pid != other.Process.Pid {
		t.Errorf("the lock seems to be held by process %d, want %d", pid, other.Process.Pid)
	}

	in.Close()
	if err := other.Wait(); err != nil {
		t.Fatal(err)
	}
	lock, err := TakeLock(dir)
	if err != nil {
		t.Fatal("the lock outlived its process:", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLockIsNotInheritedByChildren(t *testing.T) {
	dir := t.TempDir()
	lock, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	in, _ := child.StdinPipe()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	again, err := TakeLock(dir)
	if err != nil {
		t.Error("a child such as a pod's shim keeps the data dir locked:", err)
	} else {
		again.Close()
	}
	in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
}
