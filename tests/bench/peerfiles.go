package main

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed peer
var peerTemplates embed.FS

// peerValues are what the templates of the peer's files refer to. Paths are
// those in the host.
type peerValues struct {
	Node, Address string
	Dir, PKI      string
	Bin, Bundle   string
}

// peerFiles are the peer's scripts and configuration by their path in the host.
func peerFiles(v peerValues) (map[string][]byte, error) {
	all, err := template.New("peer").Option("missingkey=error").ParseFS(peerTemplates, "peer/*")
	if err != nil {
		return nil, fmt.Errorf("read the peer's templates: %w", err)
	}
	files := map[string][]byte{}
	for name, path := range map[string]string{
		"start.sh":        v.Dir + "/start.sh",
		"preload.sh":      v.Dir + "/preload.sh",
		"kubelet.yaml":    v.Dir + "/kubelet.yaml",
		"kube-proxy.yaml": v.Dir + "/kube-proxy.yaml",
		"containerd.toml": "/etc/containerd/config.toml",
		"bridge.conflist": "/etc/cni/net.d/10-bridge.conflist",
	} {
		var text bytes.Buffer
		if err := all.ExecuteTemplate(&text, name, v); err != nil {
			return nil, fmt.Errorf("write the peer's %s: %w", name, err)
		}
		files[path] = text.Bytes()
	}
	return files, nil
}
