{{- define "shoal.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of a part: (dict "root" $ "part" "origin") */}}
{{- define "shoal.selector" -}}
app.kubernetes.io/name: shoal
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "shoal.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "shoal.secret" -}}
{{- if or .Values.join.tokens.bootstrap .Values.join.tokens.origin .Values.join.tokens.gateway -}}
{{ include "shoal.name" . }}-join
{{- else -}}
{{ required "join.existingSecret: name the secret with the join tokens" .Values.join.existingSecret }}
{{- end -}}
{{- end -}}

{{/* All doors, as a TOML list. */}}
{{- define "shoal.doors" -}}
{{- $doors := .Values.bootstrapPeers -}}
{{- if .Values.bootstrap.enabled -}}
{{- $door := printf "/dns4/%s-bootstrap.%s.svc/tcp/%d" (include "shoal.name" .) .Release.Namespace (int .Values.ports.control) -}}
{{- $doors = append $doors $door -}}
{{- end -}}
{{- if not $doors -}}{{ fail "bootstrapPeers: without bootstrap.enabled, name the doors of the mesh" }}{{- end -}}
{{- toJson $doors -}}
{{- end -}}

{{/* More settings of a part, as TOML; sizes and durations are texts there. */}}
{{- define "shoal.settings" -}}
{{- range $key, $value := . }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end -}}

{{- define "shoal.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "shoal.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "shoal.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: ops{{ if .host }}, host: {{ .host }}{{ end }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: ops{{ if .host }}, host: {{ .host }}{{ end }}}
  periodSeconds: 20
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: ops{{ if .host }}, host: {{ .host }}{{ end }}}
  periodSeconds: 10
  timeoutSeconds: 6
{{- end -}}

{{- define "shoal.env" -}}
- name: SHOAL_JOIN
  value: /run/shoal/join
- name: SHOAL_DATA_DIR
  value: /var/lib/shoal
- name: SHOAL_IDENTITY
  value: /var/lib/shoal/identity
- name: SHOAL_MESH_PUB
  value: /var/lib/shoal/mesh.pub
{{- end -}}
