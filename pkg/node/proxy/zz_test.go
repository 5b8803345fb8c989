package proxy

import (
"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestZZ(t *testing.T) {
	lab(t)
	at := pod(t, podIP, "web")
	_, stop := start(t, cluster(service("web", clusterIP), endpoint("web", at)))
	stop()
	var bad atomic.Int64
	var asked atomic.Int64
	var over atomic.Bool
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for !over.Load() {
				if err := syn(clusterIP + ":80"); err != nil {
					bad.Add(1)
					t.Logf("the Service gives %v", err)
				}
				asked.Add(1)
			}
		})
	}
	rules := nft(t, "list", "table", "ip", "kube-proxy")
	i := strings.Index(rules, "/web/tcp/p {")-len("chain service-12345678-default")
	name := strings.Fields(rules[i:])[1]
	body := strings.TrimSpace(strings.Split(rules[i:], "\n")[1])
	tx := "flush chain ip kube-proxy " + name + "\nadd rule ip kube-proxy " + name + " " + body + "\n"
	t.Log(tx)
	_ = os.Getenv
	for range 3000 {
		c := exec.Command("nft", "-f", "-")
		c.Stdin = strings.NewReader(tx)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	}
	over.Store(true)
	clients.Wait()
	t.Log("bad", bad.Load(), "of", asked.Load())
}

func syn(addr string) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	c.(*net.TCPConn).SetLinger(0)
	return c.Close()
}
