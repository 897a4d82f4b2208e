// Package test renders the Helm chart with Helm itself, and checks what it makes against the types of Kubernetes. It is a
// module of its own, so that Pulley's does not require Helm: make helm.
package test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

const (
	chartDir = "../pulley"
	secure   = "nats: {url: tls://pulley-nats:4222, secret: pulley-nats}\n"
	vllm     = `engines:
- name: vllm
  replicas: 2
  options: slots=64,profile=latency
  container: {image: vllm/vllm-openai:v0.19.0, args: [--model, m], resources: {limits: {nvidia.com/gpu: 1}}, volumeMounts: [{name: models, mountPath: /models}]}
  volumes: [{name: models, emptyDir: {}}]
`
)

const keda = "gateway: {keda: {enabled: true}}\n"

// scaled are an engine's values with those of autoscaling.
func scaled(autoscaling string) string {
	return "engines: [{name: a, container: {image: i}, autoscaling: " + autoscaling + "}]"
}

// cases are values that install something.
var cases = map[string]string{
	"the least":      secure,
	"no users":       "nats: {url: nats://nats:4222, allowWithoutUsers: true}\n",
	"engines":        secure + vllm,
	"two":            secure + vllm + "- {name: sglang, port: 30000, container: {image: lmsysorg/sglang:v0.5}}\n",
	"nodes":          secure + "gateway: {enabled: false}\ndaemonset: {enabled: true, engines: ['http://$(HOST_IP):8000,slots=32', 'http://$(HOST_IP):11434'], nodeSelector: {gpu: 'yes'}, tolerations: [{operator: Exists}]}\n",
	"system's CA":    "nats: {url: tls://nats.example.com:4222, secret: s, ca: '', replicas: 3}\n",
	"KEDA":           secure + vllm + "  autoscaling: {enabled: true, pool: 'Qwen/Qwen3-8B'}\ngateway: {keda: {enabled: true}}\nnetworkPolicy: {enabled: true}\n",
	"KEDA, slots":    secure + vllm + "  autoscaling: {enabled: true, trigger: external, pool: 'Qwen/Qwen3-8B', slots: 48, minReplicas: 0, cooldownSeconds: 60, behavior: {scaleDown: {stabilizationWindowSeconds: 900}}}\ngateway: {keda: {enabled: true, port: 9191}}\n",
	"KEDA elsewhere": secure + "gateway: {enabled: false}\n" + vllm + "  autoscaling: {enabled: true, pool: 'Qwen/Qwen3-8B', scalerAddress: 'pulley-keda.other.svc:9090'}\n",
	"wss":            "nats: {url: 'wss://nats.example.com:443', secret: s}\n",
	"workers later":  secure + vllm + "worker: {tag: '1'}\nimage: {tag: '2'}\n",
	"everything": secure + vllm + `  nodeSelector: {gpu: 'yes'}
  tolerations: [{key: nvidia.com/gpu, operator: Exists}]
  autoscaling: {enabled: true, pool: 'Qwen/Qwen3-8B', minReplicas: 0, maxReplicas: 4, prometheus: 'http://prometheus:9090'}
imagePullSecrets: [{name: registry}]
gateway:
  replicas: 3
  drainTimeoutSeconds: 1200
  adminTokenSecret: admin
  extraArgs: [--access-log=stdout, --first-byte-within=5s]
  env: [{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: 'http://otel:4318'}]
  podAnnotations: {a: b}
  nodeSelector: {a: b}
  tolerations: [{operator: Exists}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway}]
  affinity: {podAntiAffinity: {}}
  pdb: {maxUnavailable: 50%}
  service: {type: LoadBalancer, annotations: {c: d}}
daemonset: {enabled: true}
worker: {nvml: required, runtimeClassName: nvidia, extraArgs: [--slo-itl=50ms], env: [{name: A, value: b}]}
httpRoute: {enabled: true, parentRefs: [{name: public, namespace: gateways}], hostnames: [llm.example.com]}
networkPolicy: {enabled: true, apiFrom: [{namespaceSelector: {}}], metricsFrom: [{namespaceSelector: {matchLabels: {a: b}}}]}
serviceMonitor: {enabled: true, labels: {release: prometheus}}
serviceAccount: {annotations: {e: f}}
`,
}

func TestChart(t *testing.T) {
	for about, values := range cases {
		t.Run(about, func(t *testing.T) {
			for _, m := range lint.RunAll(chartDir, parse(t, values), "llm").Messages {
				if m.Severity >= support.WarningSev {
					t.Errorf("lint: %v", m)
				}
			}
			rendered, err := render(t, values)
			if err != nil {
				t.Fatal(err)
			}
			check(t, decode(t, rendered))
		})
	}
}

// What cannot work is refused, with a message that says what to set.
func TestRefused(t *testing.T) {
	for about, c := range map[string]struct{ values, want string }{
		"no NATS":                  {"", "nats.url is required"},
		"no users":                 {"nats: {url: nats://nats:4222}", "nats.secret is required"},
		"nothing":                  {secure + "gateway: {enabled: false}", "nothing to install"},
		"open to the world":        {secure + "gateway: {auth: 'off', service: {type: LoadBalancer}}", "gateway.auth is off"},
		"open by a route":          {secure + "gateway: {auth: 'off'}\nhttpRoute: {enabled: true, parentRefs: [{name: a}]}", "gateway.auth is off"},
		"a route from nowhere":     {secure + "httpRoute: {enabled: true}", "httpRoute.parentRefs"},
		"a route to nothing":       {secure + vllm + "gateway: {enabled: false}\nhttpRoute: {enabled: true, parentRefs: [{name: a}]}", "httpRoute.enabled needs gateway.enabled"},
		"metrics that none reads":  {secure + "networkPolicy: {enabled: true}\nserviceMonitor: {enabled: true}", "networkPolicy.metricsFrom"},
		"the same engine twice":    {secure + vllm + vllm[len("engines:\n"):], "two are called vllm"},
		"another id":               {secure + "engines: [{name: a, options: 'slots=4,id=b', container: {image: i}}]", `options has "id=b"`},
		"scaling without a metric": {secure + "engines: [{name: a, container: {image: i}, autoscaling: {enabled: true, pool: p}}]", "gateway.keda.enabled=true"},
		"scaling without a pool":   {secure + keda + scaled("{enabled: true}"), "autoscaling.pool"},
		"seconds and slots":        {secure + keda + scaled("{enabled: true, pool: p, slots: 4, seconds: 10}"), "exclude each other"},
		"Prometheus for KEDA":      {secure + keda + scaled("{enabled: true, pool: p, trigger: external, prometheus: 'http://p'}"), "is for trigger: prometheus"},
		"Prometheus without one":   {secure + scaled("{enabled: true, trigger: prometheus}"), "needs autoscaling.prometheus"},
		"a scaler for Prometheus":  {secure + scaled("{enabled: true, prometheus: 'http://p', scalerAddress: 'a:1'}"), "autoscaling.scalerAddress"},
		"an unknown trigger":       {secure + keda + scaled("{enabled: true, pool: p, trigger: push}"), "trigger"},
		"a scaler's URL":           {secure + scaled("{enabled: true, pool: p, scalerAddress: 'http://a:1'}"), "scalerAddress"},
		"a scaler without gateway": {secure + "gateway: {enabled: false, keda: {enabled: true}}\n" + vllm, "gateway.keda.enabled needs gateway.enabled"},
		"a port that is taken":     {secure + "gateway: {keda: {enabled: true, port: 8080}}", "gateway.keda.port is 8080"},
		"a scaler for nobody":      {secure + "gateway: {keda: {enabled: true, from: []}}\nnetworkPolicy: {enabled: true}", "gateway.keda.from"},
		"a flag of the chart":      {secure + "gateway: {extraArgs: ['--listen=:9']}", "gateway.extraArgs has --listen"},
		"a worker's, too":          {secure + vllm + "worker: {extraArgs: [--drain-timeout=1s]}", "worker.drainTimeoutSeconds"},
		"a name of the scaler":     {secure + "engines: [{name: llm-pulley-keda, container: {image: i}}]", "is that of a Service of the gateways"},
		"least above most":         {secure + "engines: [{name: a, container: {image: i}, autoscaling: {enabled: true, prometheus: 'http://p', minReplicas: 9}}]", "greater than"},
		"an unknown value":         {secure + "gatewy: {}", "gatewy"},
		"an unknown key":           {secure + "gateway: {replica: 2}", "replica"},
		"a word for a number":      {secure + "gateway: {replicas: two}", "replicas"},
		"another scheme":           {"nats: {url: 'http://nats:4222', secret: s}", "url"},
		"two copies":               {"nats: {url: 'nats://nats:4222', secret: s, replicas: 2}", "replicas"},
		"an engine without image":  {secure + "engines: [{name: a, container: {args: [b]}}]", "image"},
		"a name with a dot":        {secure + "engines: [{name: a.b, container: {image: i}}]", "name"},
		"an argument without --":   {secure + "gateway: {extraArgs: [explain]}", "extraArgs"},
	} {
		if _, err := render(t, c.values); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", about, err, c.want)
		}
	}
}

// The chart of NATS takes the values that are beside Pulley's: NATS_CHART is its directory.
func TestValuesOfNATS(t *testing.T) {
	dir := os.Getenv("NATS_CHART")
	if dir == "" {
		t.Skip("NATS_CHART does not name the directory of the chart of NATS")
	}
	text, err := os.ReadFile("../nats-values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := renderChart(t, dir, string(text), "configMap.merge.data.accounts\\.conf=accounts {}", "config.cluster.routeURLs.password=secret")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(slices.Collect(maps.Values(rendered)), "\n")
	for _, want := range []string{"include accounts.conf;", `"sync_interval": "always"`, "accounts.conf: ", "secretName: pulley-nats-server", "/etc/nats-certs/nats/server.pem", "name: pulley-nats\n", "replicas: 3", "nats://route:secret@pulley-nats-0.", `"authorization": {`} {
		if !strings.Contains(all, want) {
			t.Errorf("it has no %q:\n%s", want, all)
		}
	}
}

func parse(t *testing.T, values string) map[string]any {
	t.Helper()
	parsed := make(map[string]any)
	if err := yaml.Unmarshal([]byte(values), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

func render(t *testing.T, values string) (map[string]string, error) {
	t.Helper()
	return renderChart(t, chartDir, values)
}

// renderChart renders a chart with values of a file, and with more as those of --set.
func renderChart(t *testing.T, dir, values string, set ...string) (map[string]string, error) {
	t.Helper()
	loaded, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var c *chart.Chart = loaded
	parsed := parse(t, values)
	for _, s := range set {
		if err := strvals.ParseInto(s, parsed); err != nil {
			t.Fatal(err)
		}
	}
	options := common.ReleaseOptions{Name: "llm", Namespace: "llm", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, parsed, options, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// scaledObject is KEDA's, whose own module requires half of Kubernetes: what its CRD (keda.sh/v1alpha1) has of what is used here.
type scaledObject struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		ScaleTargetRef struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Name       string `json:"name"`
		} `json:"scaleTargetRef"`
		MinReplicaCount *int32 `json:"minReplicaCount"`
		MaxReplicaCount *int32 `json:"maxReplicaCount"`
		PollingInterval *int32 `json:"pollingInterval"`
		CooldownPeriod  *int32 `json:"cooldownPeriod"`
		Advanced        struct {
			HorizontalPodAutoscalerConfig struct {
				Behavior *autoscaling.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string            `json:"type"`
			MetricType string            `json:"metricType"`
			Metadata   map[string]string `json:"metadata"`
		} `json:"triggers"`
	} `json:"spec"`
}

// kinds are the types of what the chart may have.
var kinds = map[string]func() meta.Object{
	"apps/v1/Deployment":                      func() meta.Object { return new(apps.Deployment) },
	"apps/v1/StatefulSet":                     func() meta.Object { return new(apps.StatefulSet) },
	"apps/v1/DaemonSet":                       func() meta.Object { return new(apps.DaemonSet) },
	"v1/Service":                              func() meta.Object { return new(core.Service) },
	"v1/ServiceAccount":                       func() meta.Object { return new(core.ServiceAccount) },
	"policy/v1/PodDisruptionBudget":           func() meta.Object { return new(policy.PodDisruptionBudget) },
	"networking.k8s.io/v1/NetworkPolicy":      func() meta.Object { return new(networking.NetworkPolicy) },
	"gateway.networking.k8s.io/v1/HTTPRoute":  func() meta.Object { return new(gateway.HTTPRoute) },
	"monitoring.coreos.com/v1/ServiceMonitor": func() meta.Object { return new(monitoring.ServiceMonitor) },
	"keda.sh/v1alpha1/ScaledObject":           func() meta.Object { return new(scaledObject) },
}

// decode reads the objects strictly: a field that its type does not have is an error.
func decode(t *testing.T, rendered map[string]string) (objects []meta.Object) {
	t.Helper()
	seen := make(map[string]bool)
	for _, file := range slices.Sorted(maps.Keys(rendered)) {
		if filepath.Ext(file) != ".yaml" {
			if strings.Contains(rendered[file], "<no value>") {
				t.Errorf("%s:\n%s", file, rendered[file])
			}
			continue
		}
		for text := range strings.SplitSeq("\n"+rendered[file], "\n---") {
			if strings.TrimSpace(text) == "" {
				continue
			}
			var kind meta.TypeMeta
			if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
				t.Fatalf("%s: %v\n%s", file, err, text)
			}
			id := kind.APIVersion + "/" + kind.Kind
			if kinds[id] == nil {
				t.Fatalf("%s: unknown kind %q\n%s", file, id, text)
			}
			object := kinds[id]()
			if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
				t.Fatalf("%s: %v\n%s", file, err, text)
			}
			if name := id + "/" + object.GetName(); seen[name] || object.GetName() == "" || len(object.GetName()) > 63 {
				t.Errorf("%s: the name %q is there twice, or is none", file, name)
			} else {
				seen[name] = true
			}
			objects = append(objects, object)
		}
	}
	return objects
}

// pod is what a workload makes.
type pod struct {
	name   string
	labels labels.Set
	spec   core.PodSpec
}

// check looks for what refers to something that is not there.
func check(t *testing.T, objects []meta.Object) {
	t.Helper()
	var pods []pod
	services := make(map[string]*core.Service)
	accounts := make(map[string]bool)
	for _, object := range objects {
		switch o := object.(type) {
		case *apps.Deployment:
			pods = append(pods, workload(t, o.Name, o.Spec.Selector, o.Spec.Template))
		case *apps.StatefulSet:
			pods = append(pods, workload(t, o.Name, o.Spec.Selector, o.Spec.Template))
		case *apps.DaemonSet:
			pods = append(pods, workload(t, o.Name, o.Spec.Selector, o.Spec.Template))
		case *core.Service:
			services[o.Name] = o
		case *core.ServiceAccount:
			accounts[o.Name] = true
		}
	}
	for _, p := range pods {
		checkPod(t, p)
		if !accounts[p.spec.ServiceAccountName] {
			t.Errorf("%s: there is no service account %s", p.name, p.spec.ServiceAccountName)
		}
	}
	// some requires that a selector selects pods, all of which have the ports.
	some := func(who string, selector labels.Selector, ports ...string) {
		t.Helper()
		found := false
		for _, p := range pods {
			if !selector.Matches(p.labels) {
				continue
			}
			found = true
			for _, port := range ports {
				if !hasPort(p.spec, port) {
					t.Errorf("%s: %s has no port %s", who, p.name, port)
				}
			}
		}
		if !found && len(pods) > 0 {
			t.Errorf("%s selects no pod by %s", who, selector)
		}
	}
	for _, object := range objects {
		who := fmt.Sprintf("%T %s", object, object.GetName())
		switch o := object.(type) {
		case *core.Service:
			for _, port := range o.Spec.Ports {
				some(who, labels.SelectorFromSet(o.Spec.Selector), port.TargetPort.StrVal)
			}
		case *policy.PodDisruptionBudget:
			some(who, selector(t, o.Spec.Selector))
		case *networking.NetworkPolicy:
			var ports []string
			for _, rule := range o.Spec.Ingress {
				ports = append(ports, rule.Ports[0].Port.StrVal)
			}
			if strings.HasSuffix(o.Name, "-worker") && !slices.ContainsFunc(pods, func(p pod) bool { return selector(t, &o.Spec.PodSelector).Matches(p.labels) }) {
				continue // workers may run elsewhere
			}
			some(who, selector(t, &o.Spec.PodSelector), ports...)
		case *apps.StatefulSet:
			if services[o.Spec.ServiceName] == nil {
				t.Errorf("%s: there is no service %s", who, o.Spec.ServiceName)
			}
		case *gateway.HTTPRoute:
			to := o.Spec.Rules[0].BackendRefs[0]
			if s := services[string(to.Name)]; s == nil || s.Spec.Ports[0].Port != int32(*to.Port) {
				t.Errorf("%s: there is no service %s with port %d", who, to.Name, *to.Port)
			}
		case *monitoring.ServiceMonitor:
			if !slices.ContainsFunc(slices.Collect(maps.Values(services)), func(s *core.Service) bool {
				return selector(t, &o.Spec.Selector).Matches(labels.Set(s.Labels)) && s.Spec.Ports[0].Name == o.Spec.Endpoints[0].Port
			}) {
				t.Errorf("%s: no service has its port", who)
			}
		case *scaledObject:
			if !slices.ContainsFunc(objects, func(target meta.Object) bool {
				s, is := target.(*apps.StatefulSet)
				return is && s.Name == o.Spec.ScaleTargetRef.Name && s.Spec.Replicas == nil // else Helm and KEDA fight over it
			}) {
				t.Errorf("%s: what it scales is not there, or has a fixed number of replicas", who)
			}
			checkTrigger(t, who, o.Spec.Triggers[0].Type, o.Spec.Triggers[0].Metadata, services)
		}
	}
}

// checkTrigger looks whether the trigger has what KEDA and Pulley's scaler need, and whether the scaler is there.
func checkTrigger(t *testing.T, who, kind string, metadata map[string]string, services map[string]*core.Service) {
	t.Helper()
	if kind == "prometheus" {
		if query := metadata["query"]; !strings.Contains(query, `{pool="Qwen/Qwen3-8B"}`) || strings.Contains(query, "%!") {
			t.Errorf("%s: query %s", who, query)
		}
		return
	}
	if kind != "external" && kind != "external-push" {
		t.Errorf("%s: trigger %s", who, kind)
	}
	switch metric, target := metadata["metric"], metadata["target"]; {
	case metadata["pool"] != "Qwen/Qwen3-8B",
		!(metric == "slots_demand" && target == "48" || metric == "outstanding_seconds" && target == "22.5"):
		t.Errorf("%s: metadata %q", who, metadata)
	}
	name, rest, _ := strings.Cut(metadata["scalerAddress"], ".")
	if strings.HasPrefix(rest, "other.svc:") {
		return
	}
	if s := services[name]; s == nil || rest != fmt.Sprintf("llm.svc:%d", s.Spec.Ports[0].Port) {
		t.Errorf("%s: there is no scaler at %s", who, metadata["scalerAddress"])
	}
}

func workload(t *testing.T, name string, by *meta.LabelSelector, template core.PodTemplateSpec) pod {
	t.Helper()
	if !selector(t, by).Matches(labels.Set(template.Labels)) {
		t.Errorf("%s does not select its own pods", name)
	}
	return pod{name, template.Labels, template.Spec}
}

func selector(t *testing.T, by *meta.LabelSelector) labels.Selector {
	t.Helper()
	s, err := meta.LabelSelectorAsSelector(by)
	if err != nil || s.Empty() {
		t.Fatalf("selector %v: %v", by, err)
	}
	return s
}

func hasPort(spec core.PodSpec, name string) bool {
	return slices.ContainsFunc(spec.Containers, func(c core.Container) bool {
		return slices.ContainsFunc(c.Ports, func(p core.ContainerPort) bool { return p.Name == name })
	})
}

func checkPod(t *testing.T, p pod) {
	t.Helper()
	for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(p.spec.Volumes, func(v core.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("%s: there is no volume %s", p.name, m.Name)
			}
		}
	}
	if len(p.spec.InitContainers) > 0 && (p.spec.InitContainers[0].RestartPolicy == nil || *p.spec.InitContainers[0].RestartPolicy != core.ContainerRestartPolicyAlways) {
		t.Errorf("%s: the engine does not go on beside the worker", p.name)
	}
	c := p.spec.Containers[0]
	if s := c.SecurityContext; s == nil || !*s.RunAsNonRoot || !*s.ReadOnlyRootFilesystem || *s.AllowPrivilegeEscalation || !reflect.DeepEqual(s.Capabilities.Drop, []core.Capability{"ALL"}) {
		t.Errorf("%s: security context %+v", p.name, s)
	}
	for _, probe := range []*core.Probe{c.LivenessProbe, c.ReadinessProbe} {
		if probe == nil || !hasPort(p.spec, probe.HTTPGet.Port.StrVal) {
			t.Errorf("%s: probe %+v", p.name, probe)
		}
	}
	drain := 0
	for _, arg := range c.Args {
		var n int
		if _, err := fmt.Sscanf(arg, "--drain-timeout=%ds", &n); err == nil {
			drain += n
		}
		if _, err := fmt.Sscanf(arg, "--drain-delay=%ds", &n); err == nil {
			drain += n
		}
	}
	if grace := *p.spec.TerminationGracePeriodSeconds; drain == 0 || grace <= int64(drain) {
		t.Errorf("%s: a grace period of %d s, and a drain of %d s", p.name, grace, drain)
	}
	checkCommand(t, c)
}

// checkCommand has Pulley read its command line, with the variables in it as Kubernetes would set them.
func checkCommand(t *testing.T, c core.Container) {
	t.Helper()
	variables := []string{"$(POD_NAME)", "vllm-0", "$(NODE_NAME)", "node-1", "$(HOST_IP)", "10.0.0.7", "$(POD_IP)", "10.1.0.7"}
	for i := 0; i < len(variables); i += 2 {
		name := strings.Trim(variables[i], "$()")
		used := strings.Contains(strings.Join(c.Args, " "), variables[i]) ||
			slices.ContainsFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return strings.Contains(m.SubPathExpr, variables[i]) })
		if used && !slices.ContainsFunc(c.Env, func(e core.EnvVar) bool { return e.Name == name && e.ValueFrom != nil }) {
			t.Errorf("%s: %s is not set", c.Name, name)
		}
	}
	var args []string
	for _, arg := range c.Args {
		args = append(args, strings.NewReplacer(variables...).Replace(arg))
	}
	if strings.Contains(strings.Join(args, " "), "$(") {
		t.Errorf("%s: a variable that is not known: %q", c.Name, args)
	}
	binary := os.Getenv("PULLEY_BIN")
	if binary == "" {
		t.Log("PULLEY_BIN is not set: the command lines are not read by Pulley")
		return
	}
	if out, err := exec.Command(binary, append(args, "--help")...).CombinedOutput(); err != nil {
		t.Errorf("pulley %q: %v\n%s", args, err, out)
	}
}
