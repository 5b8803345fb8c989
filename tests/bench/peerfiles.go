package main

import (
	"embed"
	"fmt"

	"github.com/knarr-dev/knarr/pkg/throwaway/lab"
)

//go:embed peer
var peerFolder embed.FS

// Where the peer is in its host; the files in the folder peer say so too.
const (
	peerBin    = "/opt/peer/bin"
	peerBundle = "/opt/peer/bundle"
	peerConf   = "/etc/kubernetes"
)

// peerFiles are the peer's scripts and configuration, and where they belong.
func peerFiles() map[string]string {
	return map[string]string{
		"start.sh":        peerConf + "/start.sh",
		"preload.sh":      peerConf + "/preload.sh",
		"kubelet.yaml":    peerConf + "/kubelet.yaml",
		"kube-proxy.yaml": peerConf + "/kube-proxy.yaml",
		"containerd.toml": "/etc/containerd/config.toml",
		"bridge.conflist": "/etc/cni/net.d/10-bridge.conflist",
	}
}

func writePeerFiles(h *lab.Host) error {
	for name, path := range peerFiles() {
		text, err := peerFolder.ReadFile("peer/" + name)
		if err != nil {
			return fmt.Errorf("configure peer: %w", err)
		}
		if err := writeFile(h, path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
