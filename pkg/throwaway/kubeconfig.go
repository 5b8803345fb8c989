package throwaway

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// UserKubeconfig is the file that kubectl would change: the first of KUBECONFIG
// that exists, else the last of it, else ~/.kube/config.
func UserKubeconfig() string {
	return clientcmd.NewDefaultPathOptions().GetDefaultFilename()
}

// ownKubeconfig makes the cluster's kubeconfig out of that in its server, which
// knows neither the cluster's name nor where this machine reaches it.
func ownKubeconfig(path, server, name string) (*clientcmdapi.Config, error) {
	in, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the server's kubeconfig: %w", err)
	}
	at := in.Contexts[in.CurrentContext]
	if at == nil || in.Clusters[at.Cluster] == nil || in.AuthInfos[at.AuthInfo] == nil {
		return nil, errors.New("read the server's kubeconfig: it has no current context")
	}
	out := clientcmdapi.NewConfig()
	cluster := in.Clusters[at.Cluster]
	cluster.Server = server
	out.Clusters[name] = cluster
	out.AuthInfos[name] = in.AuthInfos[at.AuthInfo]
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	return out, nil
}

// access changes a single file, as `kubectl config --kubeconfig` does.
func access(path string) *clientcmd.PathOptions {
	o := clientcmd.NewDefaultPathOptions()
	o.LoadingRules.ExplicitPath = path
	return o
}

// addContext puts the cluster into the user's kubeconfig and makes it the current
// one. What the file says of other clusters stays.
func addContext(rec *Record, own *clientcmdapi.Config) error {
	o := access(rec.Kubeconfig)
	if err := os.MkdirAll(filepath.Dir(rec.Kubeconfig), 0o700); err != nil {
		return fmt.Errorf("add context to kubeconfig: %w", err)
	}
	all, err := o.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("add context to kubeconfig %s: %w", rec.Kubeconfig, err)
	}
	name := rec.Context()
	// An entry is written to the file that it says to be from.
	cluster, user := own.Clusters[name].DeepCopy(), own.AuthInfos[name].DeepCopy()
	cluster.LocationOfOrigin, user.LocationOfOrigin = "", ""
	all.Clusters[name], all.AuthInfos[name], all.Contexts[name] = cluster, user, &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	all.CurrentContext = name
	if err := clientcmd.ModifyConfig(o, *all, false); err != nil {
		return fmt.Errorf("add context to kubeconfig %s: %w", rec.Kubeconfig, err)
	}
	return nil
}

// forgetContext takes the cluster out of the user's kubeconfig again. An entry of
// its name that leads elsewhere is another's and stays.
func forgetContext(rec *Record) error {
	if _, err := os.Stat(rec.Kubeconfig); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	o := access(rec.Kubeconfig)
	all, err := o.GetStartingConfig()
	if err != nil {
		return fmt.Errorf("remove context from kubeconfig %s: %w", rec.Kubeconfig, err)
	}
	name := rec.Context()
	if c := all.Clusters[name]; c != nil && c.Server == rec.Server {
		delete(all.Clusters, name)
		delete(all.AuthInfos, name)
		delete(all.Contexts, name)
		if all.CurrentContext == name {
			all.CurrentContext = ""
		}
		if err := clientcmd.ModifyConfig(o, *all, false); err != nil {
			return fmt.Errorf("remove context from kubeconfig %s: %w", rec.Kubeconfig, err)
		}
	}
	if rec.KubeconfigMade && len(all.Clusters)+len(all.AuthInfos)+len(all.Contexts) == 0 {
		return os.Remove(rec.Kubeconfig)
	}
	return nil
}
