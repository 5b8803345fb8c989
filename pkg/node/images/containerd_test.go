package images

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/log"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/cri"
	_ "github.com/containerd/containerd/v2/plugins/cri/images"
	_ "github.com/containerd/containerd/v2/plugins/cri/runtime"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/nri"
	_ "github.com/containerd/containerd/v2/plugins/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/metrics"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/streaming"
	_ "github.com/containerd/containerd/v2/plugins/transfer"
)

// snapshotter needs nothing of the kernel.
const snapshotter = "native"

// containerdForTest is a real containerd, with its CRI part, in temporary
// folders of one test.
type containerdForTest struct {
	address string
	client  *client.Client
	cri     runtime.ImageServiceClient
	ctx     context.Context
}

func startContainerd(t *testing.T) *containerdForTest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containerd needs root")
	}
	_ = log.SetLevel("error")
	dir := t.TempDir()
	// A unix socket's path has room for 107 bytes only.
	short, err := os.MkdirTemp("", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	c := &containerdForTest{address: filepath.Join(short, "s")}

	config := &srvconfig.Config{
		Version: 4,
		Root:    at("root"),
		State:   at("state"),
		// It can be made only once in a process.
		DisabledPlugins: []string{"io.containerd.metrics.v1.grpc-prometheus"},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":    map[string]any{"address": c.address},
			"io.containerd.nri.v1.nri":        map[string]any{"disable": true},
			"io.containerd.cri.v1.images":     map[string]any{"snapshotter": snapshotter},
			"io.containerd.grpc.v1.cri":       map[string]any{"stream_server_address": "127.0.0.1", "stream_server_port": "0"},
			"io.containerd.cri.v1.runtime":    map[string]any{"cni": map[string]any{"bin_dirs": []string{at("cni")}, "conf_dir": at("cni")}, "containerd": map[string]any{"runtimes": map[string]any{}}},
			"io.containerd.transfer.v1.local": map[string]any{"unpack_config": []map[string]any{{"platform": "linux/amd64", "snapshotter": snapshotter}}},
		},
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.New(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if c.client, err = Dial(c.address); err != nil {
		t.Fatal(err)
	}
	c.cri = runtime.NewImageServiceClient(c.client.Conn().(*grpc.ClientConn))
	c.ctx = namespaces.WithNamespace(ctx, namespace)
	t.Cleanup(func() {
		c.client.Close()
		s.Stop()
		cancel()
	})
	return c
}

// status is what the kubelet would learn about an image; nil if it is unknown.
func (c *containerdForTest) status(t *testing.T, name string) *runtime.Image {
	t.Helper()
	answer, err := c.cri.ImageStatus(c.ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: name}})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetImage()
}

// journal is a log that a test can wait on.
type journal struct {
	mu    sync.Mutex
	text  strings.Builder
	grown chan struct{}
}

func newJournal() *journal { return &journal{grown: make(chan struct{}, 1)} }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text.Write(p)
	select {
	case j.grown <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// await returns when words have been logged n times.
func (j *journal) await(t *testing.T, words string, n int) {
	t.Helper()
	for strings.Count(j.String(), words) < n {
		select {
		case <-j.grown:
		case <-t.Context().Done():
			t.Fatalf("never logged %q %d times:\n%s", words, n, j)
		}
	}
}
