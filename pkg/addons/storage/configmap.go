package storage

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// createPaths writes the ConfigMap that says where volumes are, unless there is
// one: from then on it is the administrator's.
func createPaths(ctx context.Context, client kubernetes.Interface, path string) error {
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	if _, err := maps.Get(ctx, PathsConfigMap, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		if err != nil {
			return fmt.Errorf("read ConfigMap kube-system/%s: %w", PathsConfigMap, err)
		}
		return nil
	}
	text, err := defaultPaths(path)
	if err != nil {
		return err
	}
	_, err = maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: PathsConfigMap},
		Data:       map[string]string{pathsKey: text},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ConfigMap kube-system/%s: %w", PathsConfigMap, err)
	}
	return nil
}

func defaultPaths(path string) (string, error) {
	type entry struct {
		Node  string   `json:"node"`
		Paths []string `json:"paths"`
	}
	text, err := json.MarshalIndent(map[string]any{"nodePathMap": []entry{{otherNodes, []string{path}}}}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", pathsKey, err)
	}
	return string(text) + "\n", nil
}

// readPaths are the folders that a node may have volumes in, as the ConfigMap says
// now. Without one they are fallback, unless that is empty.
func readPaths(ctx context.Context, client kubernetes.Interface, node, fallback string) ([]string, error) {
	m, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, PathsConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && fallback != "" {
		return []string{fallback}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap kube-system/%s: %w", PathsConfigMap, err)
	}
	return pathsOf(m.Data[pathsKey], node)
}
