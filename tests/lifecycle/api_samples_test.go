package lifecycle

// samples has an object of every kind that is created, kept and deleted. Its
// status is not created but patched.
const samples = `
apiVersion: v1
kind: ConfigMap
---
apiVersion: v1
kind: Secret
---
apiVersion: v1
kind: Endpoints
subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Event
involvedObject: {namespace: NS, kind: Pod, name: any}
---
apiVersion: v1
kind: LimitRange
spec: {limits: [{type: Container, max: {cpu: "64"}}]}
---
apiVersion: v1
kind: Namespace
status: {conditions: CONDITIONS}
---
apiVersion: v1
kind: Node
status: {conditions: CONDITIONS}
---
apiVersion: v1
kind: PersistentVolumeClaim
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}, storageClassName: none}
status: {conditions: CONDITIONS}
---
apiVersion: v1
kind: PersistentVolume
spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, storageClassName: other, hostPath: {path: /tmp}}
status: {reason: Sample, message: by a test}
---
apiVersion: v1
kind: Pod
spec: {schedulerName: nobody, containers: [{name: a, image: a}]}
status: {conditions: CONDITIONS}
---
apiVersion: v1
kind: PodTemplate
template: TEMPLATE
---
apiVersion: v1
kind: ReplicationController
spec: {replicas: 0, selector: {app: sample}, template: TEMPLATE}
status: {conditions: CONDITIONS}
---
apiVersion: v1
kind: ResourceQuota
spec: {hard: {pods: "100"}}
status: {hard: {pods: "100"}}
---
apiVersion: v1
kind: ServiceAccount
---
apiVersion: v1
kind: Service
spec: {ports: [{port: 80}]}
status: {conditions: CONDITIONS}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
spec:
  matchConstraints: {resourceRules: [{apiGroups: [none.example.org], apiVersions: [v1], operations: [CREATE], resources: [none]}]}
  validations: [{expression: "true"}]
status: {conditions: CONDITIONS}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
spec: {policyName: sample, validationActions: [Deny]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
spec:
  reinvocationPolicy: Never
  matchConstraints: {resourceRules: [{apiGroups: [none.example.org], apiVersions: [v1], operations: [CREATE], resources: [none]}]}
  mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/none'}]"}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
spec: {policyName: sample}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: samples.example.org}
spec:
  group: example.org
  scope: Cluster
  names: {plural: samples, kind: Sample}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
status: {conditions: CONDITIONS}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.away.example.org}
spec: {group: away.example.org, version: v1, groupPriorityMinimum: 1000, versionPriority: 10, insecureSkipTLSVerify: true, service: {namespace: NS, name: none}}
status: {conditions: CONDITIONS}
---
apiVersion: apps/v1
kind: ControllerRevision
revision: 1
data: {a: b}
---
apiVersion: apps/v1
kind: DaemonSet
spec: {selector: {matchLabels: {app: sample}}, template: TEMPLATE}
status: {conditions: CONDITIONS}
---
apiVersion: apps/v1
kind: Deployment
spec: {replicas: 0, selector: {matchLabels: {app: sample}}, template: TEMPLATE}
status: {conditions: CONDITIONS}
---
apiVersion: apps/v1
kind: ReplicaSet
spec: {replicas: 0, selector: {matchLabels: {app: sample}}, template: TEMPLATE}
status: {conditions: CONDITIONS}
---
apiVersion: apps/v1
kind: StatefulSet
spec: {replicas: 0, serviceName: sample, selector: {matchLabels: {app: sample}}, template: TEMPLATE}
status: {conditions: CONDITIONS}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: none}}
status: {conditions: CONDITIONS}
---
apiVersion: batch/v1
kind: CronJob
spec: {schedule: "0 0 1 1 *", suspend: true, jobTemplate: {spec: {template: ONCE}}}
status: {lastScheduleTime: "2026-01-01T00:00:00Z"}
---
apiVersion: batch/v1
kind: Job
spec: {suspend: true, template: ONCE}
status: {conditions: CONDITIONS}
---
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
spec: {signerName: example.org/sample, usages: [client auth], request: REQUEST}
status: {conditions: CONDITIONS}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
spec: {holderIdentity: anna}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
addressType: IPv4
endpoints: [{addresses: [192.0.2.7]}]
---
apiVersion: events.k8s.io/v1
kind: Event
eventTime: "2026-01-01T00:00:00.000000Z"
regarding: {namespace: NS, kind: Pod, name: any}
reportingController: example.org/sample
reportingInstance: sample
action: Test
reason: Test
type: Normal
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
spec: {matchingPrecedence: 9999, priorityLevelConfiguration: {name: none}}
status: {conditions: CONDITIONS}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
spec: {type: Limited, limited: {nominalConcurrencyShares: 1, limitResponse: {type: Reject}}}
status: {conditions: CONDITIONS}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
spec: {chart: none}
---
apiVersion: helm.cattle.io/v1
kind: HelmChartConfig
spec: {valuesContent: "a: b"}
---
apiVersion: helm.knarr.dev/v1
kind: HelmChart
spec: {chart: none}
---
apiVersion: helm.knarr.dev/v1
kind: HelmChartConfig
spec: {valuesContent: "a: b"}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
spec: {controller: example.org/sample}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
spec: {defaultBackend: {service: {name: none, port: {number: 80}}}}
status: {loadBalancer: {ingress: [{ip: 192.0.2.7}]}}
---
apiVersion: networking.k8s.io/v1
kind: IPAddress
metadata: {name: 10.43.200.200}
spec: {parentRef: {resource: pods, namespace: NS, name: none}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
spec: {podSelector: {}}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
spec: {cidrs: [10.200.0.0/24]}
status: {conditions: CONDITIONS}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
handler: sample
---
apiVersion: policy/v1
kind: PodDisruptionBudget
spec: {minAvailable: 1, selector: {matchLabels: {app: none}}}
status: {conditions: CONDITIONS}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
---
apiVersion: resource.k8s.io/v1
kind: DeviceClass
spec: {}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
spec: {devices: {requests: [{name: one, exactly: {deviceClassName: none}}]}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
spec: {spec: {devices: {requests: [{name: one, exactly: {deviceClassName: none}}]}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
spec: {driver: sample.example.org, nodeName: none, pool: {name: sample, generation: 1, resourceSliceCount: 1}, devices: [{name: one}]}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
value: 7
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
spec: {}
---
apiVersion: storage.k8s.io/v1
kind: CSINode
spec: {drivers: []}
---
apiVersion: storage.k8s.io/v1
kind: CSIStorageCapacity
storageClassName: none
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
provisioner: example.org/sample
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
spec: {attacher: sample.example.org, nodeName: none, source: {persistentVolumeName: none}}
status: {attached: true}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
driverName: sample.example.org
parameters: {a: b}
`
