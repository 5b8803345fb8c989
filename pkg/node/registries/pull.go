package registries

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/streaming"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// answerTimeout bounds the wait for a pull's own credentials, which lie in this
// process' memory: containerd answers at once, or not at all when it can't read
// them.
const answerTimeout = 10 * time.Second

// Redirect returns what to pull from instead of source: the same image, by the
// endpoints of the file. A source that the file does not concern is returned
// itself. It is of use until ctx ends.
func (r *Registries) Redirect(ctx context.Context, source any) (any, error) {
	reg, ok := source.(*registry.OCIRegistry)
	if !ok {
		return source, nil
	}
	f, err := r.current()
	if err != nil {
		return nil, err
	}
	image, err := reference.Parse(reg.Image())
	if err != nil {
		return source, nil // what is wrong with the image's name is told later
	}
	var nodes []docker.RegistryHost
	if f != nil && r.Peers != nil && f.lists(image.Hostname()) {
		nodes = r.peers(image.Hostname(), image.Object)
	}
	if r.Dial != nil {
		own := file{dial: r.Dial}
		if f != nil {
			own.mirrors, own.configs = f.mirrors, f.configs
		}
		f = &own
	}
	if f == nil || r.Dial == nil && nodes == nil && !f.concerns(image.Hostname()) {
		return source, nil
	}
	asks, headers, err := innards(ctx, reg)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", reg.Image(), err)
	}
	return &redirected{OCIRegistry: reg, resolver: docker.NewResolver(docker.ResolverOptions{
		Hosts: func(name string) ([]docker.RegistryHost, error) {
			hosts, err := f.hosts(name, asks)
			if err != nil || nodes == nil {
				return hosts, err
			}
			return slices.Concat(nodes[:1], hosts, nodes[1:]), nil
		},
		Headers: headers,
	})}, nil
}

// peers are the other nodes, first and, where there is a second one, last. What
// the tag latest means changes by the nature of it: the registry is asked for
// that, and nodes only when it can't be.
func (r *Registries) peers(registry, object string) []docker.RegistryHost {
	host, transport := r.Peers(registry)
	first := docker.RegistryHost{
		Client: &http.Client{Transport: transport}, Host: host, Scheme: "https", Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
	}
	if object != "latest" {
		return []docker.RegistryHost{first}
	}
	last := first
	first.Capabilities = docker.HostCapabilityPull
	return []docker.RegistryHost{first, last}
}

// redirected is a source with another resolver.
type redirected struct {
	*registry.OCIRegistry
	resolver remotes.Resolver
}

var (
	_ transfer.ImageFetcher              = (*redirected)(nil)
	_ transfer.ImageResolverOptionSetter = (*redirected)(nil)
)

func (r *redirected) Resolve(ctx context.Context) (string, ocispec.Descriptor, error) {
	return r.resolver.Resolve(ctx, r.Image())
}

func (r *redirected) Fetcher(ctx context.Context, name string) (transfer.Fetcher, error) {
	return r.resolver.Fetcher(ctx, name)
}

func (r *redirected) SetResolverOptions(options ...transfer.ImageResolverOption) {
	if resolver, ok := r.resolver.(remotes.ResolverWithOptions); ok {
		resolver.SetOptions(options...)
	}
}

// innards takes what a source keeps to itself out of it, by the way in which a
// client sends one to containerd.
func innards(ctx context.Context, reg *registry.OCIRegistry) (asker, http.Header, error) {
	talk := &conversation{ctx: ctx, questions: make(chan typeurl.Any), answers: make(chan typeurl.Any)}
	sent, err := reg.MarshalAny(ctx, talk)
	if err != nil {
		return nil, nil, err
	}
	var message transfertypes.OCIRegistry
	if err := typeurl.UnmarshalTo(sent, &message); err != nil {
		return nil, nil, err
	}
	headers := http.Header{}
	for k, v := range message.GetResolver().GetHeaders() {
		headers.Set(k, v)
	}
	if message.GetResolver().GetAuthStream() == "" {
		return func(string) (string, string, error) { return "", "", nil }, headers, nil
	}
	return func(host string) (string, string, error) {
		return talk.credentials(&transfertypes.AuthRequest{Host: host, Reference: message.Reference})
	}, headers, nil
}

// conversation is both ends of the stream by which a source is asked for
// credentials; the source has the end with Send and Recv.
type conversation struct {
	ctx       context.Context
	one       sync.Mutex // question at a time
	questions chan typeurl.Any
	answers   chan typeurl.Any
}

var (
	_ streaming.StreamCreator = (*conversation)(nil)
	_ streaming.Stream        = (*conversation)(nil)
)

func (c *conversation) Create(context.Context, string) (streaming.Stream, error) { return c, nil }

func (c *conversation) Send(answer typeurl.Any) error {
	select {
	case c.answers <- answer:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

func (c *conversation) Recv() (typeurl.Any, error) {
	select {
	case question := <-c.questions:
		return question, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func (c *conversation) Close() error { return nil }

func (c *conversation) credentials(request *transfertypes.AuthRequest) (user, secret string, err error) {
	c.one.Lock()
	defer c.one.Unlock()
	question, err := typeurl.MarshalAny(request)
	if err != nil {
		return "", "", err
	}
	limit := time.NewTimer(answerTimeout)
	defer limit.Stop()
	questions := c.questions
	for {
		select {
		case questions <- question:
			questions = nil // asked
		case answer := <-c.answers:
			var a transfertypes.AuthResponse
			if err := typeurl.UnmarshalTo(answer, &a); err != nil {
				return "", "", err
			}
			if a.GetAuthType() == transfertypes.AuthType_HEADER {
				return "", "", nil // which containerd passes over too
			}
			return a.GetUsername(), a.GetSecret(), nil
		case <-limit.C:
			return "", "", errors.New("the credentials given for this pull can't be read; look at the pod's imagePullSecrets")
		case <-c.ctx.Done():
			return "", "", c.ctx.Err()
		}
	}
}
