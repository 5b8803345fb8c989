// Package storage gives claims folders of the node that their pod is on: the
// StorageClass local-path, as k3s has it, without pods.
//
// The server decides, by sig-storage's own library for provisioners, when a claim
// gets a volume and when one is deleted: see [Controller]. Each node makes and
// removes the folders on itself, see [Folders]: the server's own node at once, and
// another when it is asked to, see [Agent].
package storage

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	coreinformers "k8s.io/client-go/informers/core/v1"
	storageinformers "k8s.io/client-go/informers/storage/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/knarr-dev/knarr/pkg/component"
	"github.com/knarr-dev/knarr/pkg/part"
)

const (
	// Provisioner is the name that StorageClasses have us by.
	Provisioner = "knarr.dev/local-path"
	// ClassName is the StorageClass that is there from the beginning.
	ClassName = "local-path"

	provisionedBy = "pv.kubernetes.io/provisioned-by"
	group         = "storage.knarr.dev/"
	// nodeAnnotation on a PersistentVolume names the node that has it.
	nodeAnnotation = group + "node"
)

// Config is what a Controller is told.
type Config struct {
	// Client is called once the components of Needs are ready. It must be allowed to
	// do anything with claims, volumes and classes, to annotate Nodes, and to write
	// ConfigMaps in kube-system and events.
	Client func() (kubernetes.Interface, error)
	Needs  []string
	// Node is the name of the node in this process; empty if there is none.
	Node string
	// Path is the folder of volumes on nodes for which nobody says anything else.
	Path string
	// Log defaults to slog.Default.
	Log *slog.Logger
}

// Controller is the component that makes and deletes volumes. One in a cluster may
// run.
type Controller struct{ cfg Config }

var _ component.Component = (*Controller)(nil)

// New returns the component; nothing happens until Run. It must be called before
// this process's clients are at work.
func New(cfg Config) *Controller {
	leaveSchemeAlone()
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Controller{cfg: cfg}
}

// Name implements component.Component.
func (c *Controller) Name() string { return "local-storage" }

// Needs implements component.Component.
func (c *Controller) Needs() []string { return c.cfg.Needs }

// Run implements component.Component. It is ready when claims of the class get
// volumes.
func (c *Controller) Run(ctx context.Context, ready chan<- struct{}) error {
	client, err := c.cfg.Client()
	if err != nil {
		return fmt.Errorf("create client of the storage provisioner: %w", err)
	}
	if err := createPaths(ctx, client, c.cfg.Path); err != nil {
		return err
	}
	// What upstream logs by itself is for developers, and goes with debug.
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(c.cfg.Log.Handler()).V(4)))
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events(metav1.NamespaceAll)})

	claims := coreinformers.NewPersistentVolumeClaimInformer(client, metav1.NamespaceAll, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	volumes := coreinformers.NewPersistentVolumeInformer(client, 0, cache.Indexers{})
	classes := storageinformers.NewStorageClassInformer(client, 0, cache.Indexers{})
	for in, trim := range map[cache.SharedIndexInformer]cache.TransformFunc{claims: part.Trim, volumes: trimVolume, classes: part.Trim} {
		if err := in.SetTransform(trim); err != nil {
			return fmt.Errorf("watch claims and volumes: %w", err)
		}
	}
	p := &provisioner{
		client: client, node: c.cfg.Node, log: c.cfg.Log, volumes: volumes.GetStore(),
		events: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "local-storage"}),
		own:    &Folders{Paths: func(ctx context.Context) ([]string, error) { return readPaths(ctx, client, c.cfg.Node, c.cfg.Path) }},
		path:   c.cfg.Path,
	}
	lib := controller.NewProvisionController(ctx, client, Provisioner, p,
		controller.LeaderElection(false),
		controller.ClaimsInformer(claims), controller.VolumesInformer(volumes), controller.ClassesInformer(classes),
		controller.ResyncPeriod(0),
		controller.AddFinalizer(true),
		controller.RateLimiter(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, time.Minute)),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0),
		controller.CreateProvisionedPVBackoff(wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Steps: 10}),
	)
	lib.ControllerWaitGroup(&tasks)
	calm(lib)
	steps := newDefaults(client, classes, c.cfg.Log)
	handle, err := classes.AddEventHandler(steps)
	if err != nil {
		return fmt.Errorf("watch StorageClasses: %w", err)
	}
	var synced []cache.DoneChecker
	for _, in := range []cache.SharedIndexInformer{claims, volumes, classes} {
		tasks.Go(func() { in.RunWithContext(ctx) })
		synced = append(synced, in.HasSyncedChecker())
	}
	if !cache.WaitFor(ctx, "", append(synced, handle.HasSyncedChecker())...) || ctx.Err() != nil {
		return nil
	}
	if err := steps.create(ctx); err != nil {
		return err
	}
	tasks.Go(func() { steps.run(ctx) })
	close(ready)
	lib.Run(ctx)
	return nil
}

// calm has upstream look through its list of slow claims once an hour, in place
// of ten times a second; when it does not look, a claim is tried again a little
// later than it could be.
func calm(lib *controller.ProvisionController) {
	set := reflect.ValueOf(lib).Elem().FieldByName("slowSet")
	if !set.IsValid() || set.Kind() != reflect.Pointer || set.IsNil() {
		return
	}
	period := set.Elem().FieldByName("resyncPeriod")
	if period.IsValid() && period.Type() == reflect.TypeFor[time.Duration]() {
		*(*time.Duration)(period.Addr().UnsafePointer()) = time.Hour
	}
}

// trimVolume keeps other provisioners' volumes as names only.
func trimVolume(obj any) (any, error) {
	v, ok := obj.(*corev1.PersistentVolume)
	if !ok {
		return obj, nil
	}
	if v.Annotations[provisionedBy] != Provisioner {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: v.Name, UID: v.UID, ResourceVersion: v.ResourceVersion}}, nil
	}
	return part.Trim(obj)
}

// Objects are what nodes need to be allowed: to read what is asked of them, and
// where their volumes are.
func Objects() []runtime.Object {
	const name = "knarr:local-storage"
	return []runtime.Object{
		&rbacv1.Role{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"},
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name},
			Rules: []rbacv1.PolicyRule{{
				APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{PathsConfigMap, jobsConfigMap},
				Verbs: []string{"get", "list", "watch"},
			}},
		},
		&rbacv1.RoleBinding{
			TypeMeta:   metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"},
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:nodes"}},
		},
	}
}
