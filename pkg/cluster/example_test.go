package cluster_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/pkg/cluster"
)

// A control plane in a temporary folder, as any user.
func ExampleNew() {
	c, err := cluster.New(cluster.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		log.Fatal(err)
	}
	select {
	case <-c.Ready():
	case err := <-c.Err():
		log.Fatal(err)
	}
	client, err := c.Client()
	if err != nil {
		log.Fatal(err)
	}
	list, err := client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, ns := range list.Items {
		fmt.Println(ns.Name)
	}
	// Output:
	// default
	// kube-node-lease
	// kube-public
	// kube-system
}
