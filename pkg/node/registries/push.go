package registries

import (
	"errors"
	"io/fs"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Pusher is the way to registries as the file at path, which need not exist, says:
// with its certificates and credentials, and past its mirrors, which are for
// pulls. Credentials that asks returns for a host go before the file's.
func Pusher(path string, asks func(host string) (user, secret string, err error)) (remotes.Resolver, error) {
	f, err := load(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = new(file), nil
	}
	if err != nil {
		return nil, err
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(name string) ([]docker.RegistryHost, error) {
		h, err := f.pushHost(name, asks)
		return []docker.RegistryHost{h}, err
	}}), nil
}

// pushHost is the registry itself. Where the file has it among its own mirrors it
// is spoken to as is said there.
func (f *file) pushHost(registry string, asks asker) (docker.RegistryHost, error) {
	own, err := f.own(registry)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	var rewrites []rewrite
	m := f.mirror(registry)
	for _, e := range m.endpoints {
		if e.host == own.host {
			own, rewrites = e, m.rewrites
			break
		}
	}
	h, err := f.host(own, rewrites, true, asks)
	h.Capabilities |= docker.HostCapabilityPush
	return h, err
}
