package config

import (
	"net/netip"
	"os"
	"strconv"
)

// registry checks where the registry is.
func (k *checker) registry() {
	r := k.c.Registry
	addr, err := netip.ParseAddrPort(r.Address)
	switch {
	case err != nil || addr.Port() == 0:
		k.add(at("registry-address"), strconv.Quote(r.Address), "is not an address with a port", "give one such as 127.0.0.1:5000")
	case !addr.Addr().IsLoopback():
		k.add(at("registry-address"), strconv.Quote(r.Address), "is not a loopback address: the registry knows no passwords, and whoever reached it could replace the images that pods run",
			"give one such as 127.0.0.1:5000, which every node has, and put a proxy with TLS and passwords before it for others")
	case int(addr.Port()) == k.c.API.Port && r.Enabled:
		k.add(at("registry-address", "https-listen-port"), strconv.Quote(r.Address), "has the port of the API server", "choose another")
	}
}

// credentialProvider checks what the kubelet would end the process for.
func (k *checker) credentialProvider(h Host) {
	const file, folder = "image-credential-provider-config", "image-credential-provider-bin-dir"
	n := k.c.Node
	if (n.CredentialProviderConfig == "") != (n.CredentialProviderBinDir == "") {
		k.add(at(file, folder), file+" and "+folder, "go together, and one of them is missing", "give both")
		return
	}
	if n.CredentialProviderConfig == "" {
		return
	}
	if _, err := h.ReadFile(n.CredentialProviderConfig); err != nil {
		k.add(at(file), n.CredentialProviderConfig, "can't be read: "+reason(err), "give a file of kind CredentialProviderConfig")
	}
	if _, err := os.Stat(n.CredentialProviderBinDir); err != nil {
		k.add(at(folder), n.CredentialProviderBinDir, "can't be read: "+reason(err), "give the folder that the programs are in")
	}
}
