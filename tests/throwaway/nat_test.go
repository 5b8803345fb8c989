package throwaway

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The caller's network in the test of --net=nat, which has no way to any other: an
// address, and a resolver on loopback as systemd-resolved is.
const (
	worldAddr     = "198.51.100.7"
	worldResolver = "127.0.0.53"
)

// fetches asks for a page from within pods, by name and by address, and by an
// address where nothing listens.
const fetches = `
picture() { ip -o addr; ip rule; ip route show table all; nft list ruleset; sysctl net 2>/dev/null | grep -v -e _count -e conntrack_max; }
picture > $1/after-start
cmp $1/before $1/after-start
pod() { kubectl run $1 --image=knarr.dev/test:1 --restart=Never --image-pull-policy=Never --command -- testbox get $2 --retry 0s >/dev/null; }
pod name http://world.example/
pod address http://` + worldAddr + `/
pod closed http://` + worldAddr + `:81/
kubectl wait pod/name pod/address --for=jsonpath='{.status.phase}'=Succeeded --timeout=2m >/dev/null
kubectl wait pod/closed --for=jsonpath='{.status.phase}'=Failed --timeout=2m >/dev/null
kubectl logs name; echo
kubectl logs address; echo
kubectl logs closed`

func TestPodsReachTheWorldWhereTheyMay(t *testing.T) {
	u := newUser(t)
	u.dir = filepath.Join(t.TempDir(), "clusters")
	work := t.TempDir()
	resolvConf := filepath.Join(work, "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("nameserver "+worldResolver+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out string
	err := inNetworkOfItsOwn(func() error {
		servers, err := serveWorld()
		if err != nil {
			return err
		}
		defer servers()
		prelude := `mount --bind "$1" /etc/resolv.conf; exe=$2 images=$3 work=$4
			` + fetches[:strings.Index(fetches, "\npicture >")] + `
			picture > $work/before
			"$exe" run --net=nat --image-archive "$images" -- bash -ec "$5" bash "$work"
			picture > $work/after
			cmp $work/before $work/after`
		cmd := u.command()
		cmd.Path, cmd.Args = "/bin/bash", []string{"bash", "-ec", prelude, "bash", resolvConf, u.exe, testImages, work, fetches}
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		text, err := cmd.CombinedOutput()
		out = string(text)
		if exit, ok := err.(*exec.ExitError); ok {
			return fmt.Errorf("%w: %s", exit, out)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) != 3 || lines[0] != "from the world" || lines[1] != "from the world" || !strings.Contains(lines[2], "connection refused") {
		t.Errorf("pods got:\n%s", out)
	}
}

// inNetworkOfItsOwn runs do, and the commands that it starts, in a new network.
func inNetworkOfItsOwn(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	return <-done
}

// serveWorld listens in the calling thread's network.
func serveWorld() (end func(), err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, err
	}
	ip := &net.IPNet{IP: net.ParseIP(worldAddr), Mask: net.CIDRMask(32, 32)}
	if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ip}); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", worldAddr+":80")
	if err != nil {
		return nil, err
	}
	names, err := net.ListenPacket("udp", worldResolver+":53")
	if err != nil {
		l.Close()
		return nil, err
	}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from the world") }))
	web.Listener.Close()
	web.Listener = l
	web.Start()
	resolver := &dns.Server{PacketConn: names, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		for _, question := range q.Question {
			switch {
			case question.Name != "world.example.":
				answer.Rcode = dns.RcodeNameError
			case question.Qtype == dns.TypeA:
				answer.Answer = append(answer.Answer, &dns.A{Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(worldAddr)})
			}
		}
		_ = w.WriteMsg(answer)
	})}
	go func() { _ = resolver.ActivateAndServe() }()
	return func() { web.Close(); _ = resolver.Shutdown(); names.Close() }, nil
}
