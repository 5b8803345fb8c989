package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	loadClients   = 16
	loadObjects   = 2000
	loadNamespace = "bench"
	// loadData is what each ConfigMap holds, in bytes.
	loadData = 1024
)

// burst is how long each of many requests took, and all of them together.
type burst struct {
	took    []time.Duration
	elapsed time.Duration
}

func (b burst) add(s *system, key string) {
	s.add(key, float64(len(b.took))/b.elapsed.Seconds())
	s.add(key+".p50", milliseconds(percentile(b.took, 50)))
	s.add(key+".p99", milliseconds(percentile(b.took, 99)))
}

// timeAll calls fn for 0 to n-1, by several clients side by side, each of
// which takes the next as soon as it is done with one.
func timeAll(ctx context.Context, clients, n int, fn func(ctx context.Context, client, i int) error) (burst, error) {
	b := burst{took: make([]time.Duration, n)}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for client := range clients {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				t := time.Now()
				if err := fn(ctx, client, i); err != nil {
					return err
				}
				b.took[i] = time.Since(t)
			}
		})
	}
	err := g.Wait()
	b.elapsed = time.Since(begin)
	return b, err
}

// load creates, reads, changes and deletes ConfigMaps. Acknowledged writes are
// as durable as the subject's defaults make them.
func (n *node) load(ctx context.Context, s *system, kind string) error {
	return n.while(ctx, "load", func(ctx context.Context) error {
		return n.loadAll(ctx, s, kind)
	})
}

func (n *node) loadAll(ctx context.Context, s *system, kind string) error {
	var clients []*kubernetes.Clientset
	for range loadClients {
		c, hangUp, err := n.client()
		if err != nil {
			return err
		}
		defer hangUp()
		// The handshake is not what is measured.
		if _, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			return err
		}
		clients = append(clients, c)
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: loadNamespace}}
	if _, err := clients[0].CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	name := func(i int) string { return fmt.Sprintf("cm-%04d", i) }
	data := strings.Repeat("x", loadData)
	objects := make([]*corev1.ConfigMap, loadObjects)
	for _, op := range []struct {
		name string
		do   func(ctx context.Context, client, i int) error
	}{
		{"creates", func(ctx context.Context, client, i int) (err error) {
			objects[i], err = clients[client].CoreV1().ConfigMaps(loadNamespace).Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: name(i)}, Data: map[string]string{"data": data},
			}, metav1.CreateOptions{})
			return err
		}},
		{"gets", func(ctx context.Context, client, i int) error {
			_, err := clients[client].CoreV1().ConfigMaps(loadNamespace).Get(ctx, name(i), metav1.GetOptions{})
			return err
		}},
		{"updates", func(ctx context.Context, client, i int) error {
			objects[i].Data["data"] = data[1:] + "y"
			_, err := clients[client].CoreV1().ConfigMaps(loadNamespace).Update(ctx, objects[i], metav1.UpdateOptions{})
			return err
		}},
	} {
		b, err := timeAll(ctx, loadClients, loadObjects, op.do)
		if err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
		b.add(s, kind+"."+op.name)
	}
	begin := time.Now()
	if err := clients[0].CoreV1().ConfigMaps(loadNamespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return fmt.Errorf("delete collection: %w", err)
	}
	s.add(kind+".delete", time.Since(begin).Seconds())
	return nil
}
