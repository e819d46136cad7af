{{/* Labels of an object. `name` is that of its workload, or empty. Names are fixed, and those of `k8s/`: one release is in a
     namespace, and a gateway finds its journal's claim again when either way of installing takes over from the other. */}}
{{- define "ghub.labels" -}}
{{- with .name -}}
app.kubernetes.io/name: {{ . }}
{{ end -}}
app.kubernetes.io/part-of: geekhub-gateway
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods, by which selectors find them, and what they may reach. */}}
{{- define "ghub.podLabels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: geekhub-gateway
{{- range .reaches }}
geekhub.mx/reaches-{{ . }}: "true"
{{- end }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ghub.selector" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: geekhub-gateway
{{- end }}

{{- define "ghub.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What the name of a Job ends with: its template cannot be changed, so each version has one of its own. */}}
{{- define "ghub.version" -}}
{{ include "ghub.tag" . | lower | replace "." "-" | replace "_" "-" | replace "+" "-" | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "ghub.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (include "ghub.tag" .) | quote }}
{{- if ne .Values.image.pullPolicy "IfNotPresent" }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
{{- end }}

{{/* Every pod is the image's user, and has no right on the cluster's API. */}}
{{- define "ghub.pod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- if and .root.Values.oneVolume.enabled .shares }}
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            app.kubernetes.io/part-of: geekhub-gateway
{{- end }}
{{- end }}

{{/* Nothing is written but to the volumes. */}}
{{- define "ghub.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- define "ghub.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- end }}

{{- define "ghub.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end }}

{{/* The one volume and the files, behind a workload's own. */}}
{{- define "ghub.sharedMounts" -}}
{{- if and .root.Values.files .files }}
- name: files
  mountPath: /etc/ghub
  readOnly: true
{{- end }}
{{- if .root.Values.oneVolume.enabled }}
- name: data
  mountPath: /data
{{- end }}
{{- end }}

{{- define "ghub.sharedVolumes" -}}
{{- if and .root.Values.files .files }}
- name: files
  configMap:
    name: gateway-files
{{- end }}
{{- if .root.Values.oneVolume.enabled }}
- name: data
  persistentVolumeClaim:
    claimName: gateway-data
{{- end }}
{{- end }}

{{- define "ghub.settings" -}}
envFrom:
  - configMapRef:
      name: gateway-settings
{{- end }}

{{/* Variables out of the Secret, under their own names. */}}
{{- define "ghub.secrets" -}}
{{- $secret := .root.Values.existingSecret -}}
{{- range .needed -}}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret | quote }}
      key: {{ . }}
{{ end -}}
{{- range .optional -}}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret | quote }}
      key: {{ . }}
      optional: true
{{ end -}}
{{- end }}

{{- define "ghub.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{- define "ghub.spread" -}}
- maxSkew: 1
  topologyKey: {{ .key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "ghub.selector" .name | nindent 6 }}
  matchLabelKeys: [{{ .revision }}]
{{- end }}
