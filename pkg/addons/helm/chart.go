package helm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	chartv2 "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/cli"
	"helm.sh/helm/v4/pkg/registry"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// staticPrefix is how k3s' users name an archive in the server's static folder,
// which k3s serves by its API.
const staticPrefix = "https://%{KUBERNETES_API}%/static/"

// fetch gets a chart: what the HelmChart has within itself, an archive in the
// server's static folder, or one from a repository, a registry or a URL. Nothing
// of it stays on the disk.
func (c *Controller) fetch(ctx context.Context, hc *helmChart) (*chartv2.Chart, error) {
	s := hc.Spec
	switch {
	case s.ChartContent != "":
		archive, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s.ChartContent), ""))
		if err != nil {
			return nil, fmt.Errorf("read chartContent: %w", err)
		}
		chart, err := loader.LoadArchive(bytes.NewReader(archive))
		if err != nil {
			return nil, fmt.Errorf("read chartContent: %w", err)
		}
		return chart, nil
	case s.Chart == "":
		return nil, errors.New("it has neither spec.chart nor spec.chartContent")
	case strings.HasPrefix(s.Chart, staticPrefix):
		return c.local(strings.TrimPrefix(s.Chart, staticPrefix))
	case filepath.IsAbs(s.Chart):
		name, err := filepath.Rel(c.cfg.Static, s.Chart)
		if err != nil || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("chart %s: archives of this machine are taken from %s only", s.Chart, c.cfg.Static)
		}
		return c.local(name)
	case s.Repo == "" && !strings.Contains(s.Chart, "://"):
		return nil, fmt.Errorf("chart %s: it is no URL, and spec.repo does not say where it is", s.Chart)
	}
	return c.download(ctx, hc)
}

// local reads an archive of the static folder. Links don't lead out of it.
func (c *Controller) local(name string) (*chartv2.Chart, error) {
	f, err := os.OpenInRoot(c.cfg.Static, name)
	if err != nil {
		return nil, fmt.Errorf("open chart: %w", err)
	}
	defer f.Close()
	chart, err := loader.LoadArchive(f)
	if err != nil {
		return nil, fmt.Errorf("read chart %s: %w", f.Name(), err)
	}
	return chart, nil
}

func (c *Controller) download(ctx context.Context, hc *helmChart) (*chartv2.Chart, error) {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for charts: %w", err)
	}
	dir, err := os.MkdirTemp(c.cfg.Dir, "chart-")
	if err != nil {
		return nil, fmt.Errorf("make folder for charts: %w", err)
	}
	defer os.RemoveAll(dir)
	settings := cli.New()
	settings.RepositoryConfig = filepath.Join(dir, "repositories.yaml")
	settings.RepositoryCache = filepath.Join(dir, "repository")
	settings.ContentCache = filepath.Join(dir, "content")
	settings.RegistryConfig = filepath.Join(dir, "registry.json")
	settings.PluginsDirectory = filepath.Join(dir, "plugins") // there are none

	opts, err := c.pathOptions(ctx, hc, dir)
	if err != nil {
		return nil, err
	}
	file, err := opts.LocateChart(hc.Spec.Chart, settings)
	if err != nil {
		return nil, fmt.Errorf("get chart %s: %w", hc.Spec.Chart, err)
	}
	chart, err := loader.Load(file)
	if err != nil {
		return nil, fmt.Errorf("read chart %s: %w", hc.Spec.Chart, err)
	}
	return chart, nil
}

// pathOptions are how the chart's server is reached. Files go into dir.
func (c *Controller) pathOptions(ctx context.Context, hc *helmChart, dir string) (*action.ChartPathOptions, error) {
	s := hc.Spec
	install := action.NewInstall(action.NewConfiguration()) // only it can be given a registry's client
	o := &install.ChartPathOptions
	o.RepoURL, o.Version = s.Repo, s.Version
	o.InsecureSkipTLSVerify, o.PlainHTTP, o.PassCredentialsAll = s.InsecureSkipTLSVerify, s.PlainHTTP, s.AuthPassCredentials
	if strings.HasPrefix(s.Repo, registry.OCIScheme+"://") {
		return nil, fmt.Errorf("repo %s: a registry is named in chart, as in %s/%s", s.Repo, strings.TrimSuffix(s.Repo, "/"), s.Chart)
	}
	ca := []byte(s.RepoCA)
	if ref := s.RepoCAConfigMap; ref != nil && ref.Name != "" {
		m, err := c.client.CoreV1().ConfigMaps(hc.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read ConfigMap %s/%s of repoCAConfigMap: %w", hc.Namespace, ref.Name, err)
		}
		for _, key := range slices.Sorted(maps.Keys(m.Data)) {
			ca = append(append(ca, '\n'), m.Data[key]...)
		}
	}
	write := func(name string, content []byte) (string, error) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return "", fmt.Errorf("write credentials of a chart's server: %w", err)
		}
		return path, nil
	}
	var err error
	if len(ca) > 0 {
		if o.CaFile, err = write("ca.pem", ca); err != nil {
			return nil, err
		}
	}
	if ref := s.AuthSecret; ref != nil && ref.Name != "" {
		data, err := c.secretsOf(hc.Namespace)(ctx, ref.Name)
		if err != nil {
			return nil, err
		}
		o.Username, o.Password = string(data[corev1.BasicAuthUsernameKey]), string(data[corev1.BasicAuthPasswordKey])
		if cert := data[corev1.TLSCertKey]; len(cert) > 0 {
			if o.CertFile, err = write("client.crt", cert); err != nil {
				return nil, err
			}
			if o.KeyFile, err = write("client.key", data[corev1.TLSPrivateKeyKey]); err != nil {
				return nil, err
			}
		}
	}
	if !registry.IsOCI(s.Chart) {
		return o, nil
	}
	client, err := c.registryClient(ctx, hc, ca, o, write)
	if err != nil {
		return nil, err
	}
	install.SetRegistryClient(client)
	return &install.ChartPathOptions, nil
}

// registryClient is for charts that a container registry keeps.
func (c *Controller) registryClient(ctx context.Context, hc *helmChart, ca []byte, o *action.ChartPathOptions, write func(string, []byte) (string, error)) (*registry.Client, error) {
	credentials := []byte("{}")
	if ref := hc.Spec.DockerRegistrySecret; ref != nil && ref.Name != "" {
		data, err := c.secretsOf(hc.Namespace)(ctx, ref.Name)
		if err != nil {
			return nil, err
		}
		credentials = data[corev1.DockerConfigJsonKey]
	}
	file, err := write("registry.json", credentials)
	if err != nil {
		return nil, err
	}
	opts := []registry.ClientOption{registry.ClientOptCredentialsFile(file), registry.ClientOptEnableCache(true)}
	if hc.Spec.PlainHTTP {
		opts = append(opts, registry.ClientOptPlainHTTP())
	}
	if o.Username != "" {
		opts = append(opts, registry.ClientOptBasicAuth(o.Username, o.Password))
	}
	if len(ca) > 0 || hc.Spec.InsecureSkipTLSVerify {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		pool.AppendCertsFromPEM(ca)
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.TLSClientConfig = &tls.Config{RootCAs: pool, InsecureSkipVerify: hc.Spec.InsecureSkipTLSVerify}
		opts = append(opts, registry.ClientOptHTTPClient(&http.Client{Transport: t}))
	}
	client, err := registry.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make a client of the registry of %s: %w", hc.Spec.Chart, err)
	}
	return client, nil
}
