{{- define "pulley.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "pulley.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "pulley.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "pulley.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "pulley.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "pulley.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{- /* Arguments: the root, and a tag in place of the image's. */}}
{{- define "pulley.image" -}}
{{- with index . 0 -}}
{{- printf "%s:%s" .Values.image.repository (index $ 1 | default .Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* Where KEDA reaches the gateways of this release. */}}
{{- define "pulley.kedaAddress" -}}
{{- printf "%s-keda.%s.svc:%d" (include "pulley.fullname" .) .Release.Namespace (int .Values.gateway.keda.port) -}}
{{- end }}

{{- /*
GOMEMLIMIT: nine tenths of the container's memory limit, so that Go collects garbage in place of being killed. None if the limit is
not in Mi or Gi, or the variable is set. Arguments: the resources, and the variables of the container.
*/}}
{{- define "pulley.memoryLimit" -}}
{{- $limit := dig "limits" "memory" "" (index . 0) | toString -}}
{{- $set := false -}}
{{- range index . 1 }}{{ if eq .name "GOMEMLIMIT" }}{{ $set = true }}{{ end }}{{ end -}}
{{- if and (not $set) (regexMatch "^[0-9]{1,9}(Mi|Gi)$" $limit) -}}
{{- $mi := regexFind "^[0-9]+" $limit | int64 -}}
{{- if hasSuffix "Gi" $limit }}{{ $mi = mul $mi 1024 }}{{ end -}}
- {name: GOMEMLIMIT, value: {{ printf "%dMiB" (div (mul $mi 9) 10) }}}
{{- end -}}
{{- end }}

{{- /* Labels by which an object is selected. Arguments: the root, the component, and for a worker its set. */}}
{{- define "pulley.selector" -}}
app.kubernetes.io/name: {{ include "pulley.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- with slice . 2 }}
pulley/set: {{ first . }}
{{- end }}
{{- end }}

{{- define "pulley.labels" -}}
{{ include "pulley.selector" . }}
{{- with index . 0 }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}
{{- end }}

{{- define "pulley.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "pulley.natsArgs" -}}
- --nats={{ .Values.nats.url }}
{{- if .Values.nats.secret }}
- --nkey=/etc/pulley/part.nk
{{- if and .Values.nats.ca (regexMatch "^(tls|wss)://" .Values.nats.url) }}
- --tls-ca=/etc/pulley/ca.pem
{{- end }}
{{- end }}
{{- end }}

{{- /* The part's own seed, and no other of the secret. Arguments: the root, the key of the seed. */}}
{{- define "pulley.natsMounts" -}}
{{- with index . 0 }}
{{- if .Values.nats.secret }}
- {name: nats, mountPath: /etc/pulley/part.nk, subPathExpr: {{ index $ 1 }}, readOnly: true}
{{- if and .Values.nats.ca (regexMatch "^(tls|wss)://" .Values.nats.url) }}
- {name: nats, mountPath: /etc/pulley/ca.pem, subPath: {{ .Values.nats.ca }}, readOnly: true}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pulley.natsVolume" -}}
{{- with .Values.nats.secret }}
- name: nats
  secret: {secretName: {{ . }}}
{{- end }}
{{- end }}

{{- /* The worker's container. Arguments: the root, the variable with the worker's id, and the values of --engine. */}}
{{- define "pulley.worker" -}}
{{- $root := index . 0 }}
{{- $id := index . 1 }}
{{- with $root.Values }}
name: worker
image: {{ include "pulley.image" (list $root .worker.tag) }}
imagePullPolicy: {{ .image.pullPolicy }}
args:
  - worker
  - --id=$({{ $id }})
{{- range index $ 2 }}
  - {{ printf "--engine=%s" . | quote }}
{{- end }}
  {{- include "pulley.natsArgs" $root | nindent 2 }}
  - --admin=0.0.0.0:8083
  - --nvml={{ .worker.nvml }}
  - --drain-timeout={{ .worker.drainTimeoutSeconds }}s
{{- range .worker.extraArgs }}
  - {{ . | quote }}
{{- end }}
env:
  - name: POD_NAME
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: NODE_NAME
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  - name: HOST_IP
    valueFrom: {fieldRef: {fieldPath: status.hostIP}}
{{- with include "pulley.memoryLimit" (list .worker.resources .worker.env) }}
  {{- . | nindent 2 }}
{{- end }}
{{- with .worker.env }}
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - {name: metrics, containerPort: 8083}
startupProbe: # a worker answers when it has reached NATS
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  failureThreshold: 450
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
securityContext:
  {{- include "pulley.securityContext" $root | nindent 2 }}
resources:
  {{- toYaml .worker.resources | nindent 2 }}
{{- with include "pulley.natsMounts" (list $root (printf "worker-$(%s).nk" $id)) | trim }}
volumeMounts:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
