package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// schedule is a scheduler: it puts the pods of its namespace that ask for it by
// name on the first node that takes any.
func schedule(ctx context.Context, fs *flag.FlagSet, args []string) error {
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	api, err := findAPI("/var/run/secrets/kubernetes.io/serviceaccount")
	if err != nil {
		return err
	}
	for {
		if err := api.schedule(ctx, plain[0]); err != nil {
			fmt.Fprintln(os.Stderr, "testbox schedule:", err)
		}
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

// kubeAPI is the cluster's, as a pod's ServiceAccount sees it.
type kubeAPI struct {
	client    http.Client
	address   string
	namespace string
	token     string // its file: tokens are renewed
}

func findAPI(account string) (*kubeAPI, error) {
	ca, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca.crt holds no certificate")
	}
	namespace, err := os.ReadFile(filepath.Join(account, "namespace"))
	if err != nil {
		return nil, err
	}
	return &kubeAPI{
		client:    http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}},
		address:   "https://" + net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")),
		namespace: string(namespace),
		token:     filepath.Join(account, "token"),
	}, nil
}

// call returns the body of a good answer, which the caller closes.
func (k *kubeAPI) call(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	token, err := os.ReadFile(k.token)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, k.address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	req.Header.Set("Content-Type", "application/json")
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		said, _ := io.ReadAll(resp.Body) // the status says enough
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, said)
	}
	return resp.Body, nil
}

type podEvent struct {
	Type   string
	Object struct {
		Metadata struct{ Name, UID string }
		Spec     struct{ NodeName string }
	}
}

// schedule binds pods until the watch ends, as API servers have each do.
func (k *kubeAPI) schedule(ctx context.Context, name string) error {
	fields := url.Values{"watch": {"1"}, "fieldSelector": {"spec.schedulerName=" + name + ",spec.nodeName="}}
	pods := "/api/v1/namespaces/" + k.namespace + "/pods"
	stream, err := k.call(ctx, http.MethodGet, pods+"?"+fields.Encode(), nil)
	if err != nil {
		return err
	}
	defer stream.Close()
	events := json.NewDecoder(stream)
	for {
		var e podEvent
		err := events.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.Type != "ADDED" || e.Object.Spec.NodeName != "" {
			continue
		}
		node, err := k.freeNode(ctx)
		if err != nil {
			return err
		}
		pod := e.Object.Metadata
		binding, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Binding", "metadata": map[string]string{"name": pod.Name, "uid": pod.UID},
			"target": map[string]string{"apiVersion": "v1", "kind": "Node", "name": node},
		})
		if err != nil {
			return err
		}
		answer, err := k.call(ctx, http.MethodPost, pods+"/"+pod.Name+"/binding", binding)
		if err != nil {
			return err
		}
		answer.Close()
		fmt.Println(pod.Name, "on", node)
	}
}

// freeNode is the first that nobody has closed to pods.
func (k *kubeAPI) freeNode(ctx context.Context) (string, error) {
	body, err := k.call(ctx, http.MethodGet, "/api/v1/nodes", nil)
	if err != nil {
		return "", err
	}
	defer body.Close()
	var nodes struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Unschedulable bool }
		}
	}
	if err := json.NewDecoder(body).Decode(&nodes); err != nil {
		return "", err
	}
	for _, n := range nodes.Items {
		if !n.Spec.Unschedulable {
			return n.Metadata.Name, nil
		}
	}
	return "", errors.New("no node takes pods")
}
