{{- define "mycelium-cni.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "mycelium-cni.security" -}}
{{ toJson (dict
  "allowPrivilegeEscalation" false
  "appArmorProfile" (dict "type" "Unconfined")
  "seLinuxOptions" (dict "type" "spc_t")
  "readOnlyRootFilesystem" true
  "runAsUser" 0
  "seccompProfile" (dict "type" "RuntimeDefault")
  "capabilities" (dict "drop" (list "ALL") "add" .)
) }}
{{- end }}

{{- define "mycelium-cni.install" -}}
{{- $arguments := list "--host-root" "/host" "install" }}
{{- range .Values.network.serviceNetworks }}
{{- $arguments = concat $arguments (list "--service-network" .) }}
{{- end }}
{{- if ne .Values.network.ingress "open" }}
{{- $arguments = concat $arguments (list "--ingress" .Values.network.ingress) }}
{{- end }}
{{- range .Values.network.allowFrom }}
{{- $arguments = concat $arguments (list "--allow-from" .) }}
{{- end }}
{{- if .Values.primary }}
{{- $arguments = append $arguments "--primary" }}
{{- end }}
{{- $arguments = concat $arguments (include "mycelium-cni.directories" . | fromJsonArray) }}
{{- toJson (concat $arguments .Values.installArguments) }}
{{- end }}

{{- define "mycelium-cni.agent" -}}
{{- $arguments := list "--host-root" "/host" "agent" "--log-format" .Values.agent.logFormat }}
{{- $arguments = concat $arguments (list "--listen" (printf "127.0.0.1:%d" (int .Values.agent.port))) }}
{{- toJson (concat $arguments (include "mycelium-cni.directories" . | fromJsonArray)) }}
{{- end }}

{{- define "mycelium-cni.directories" -}}
{{- $arguments := list }}
{{- range .Values.runtime.confDirs }}
{{- $arguments = concat $arguments (list "--conf-dir" .) }}
{{- end }}
{{- range .Values.runtime.binDirs }}
{{- $arguments = concat $arguments (list "--bin-dir" .) }}
{{- end }}
{{- toJson $arguments }}
{{- end }}

{{- define "mycelium-cni.daemon" -}}
{{- $arguments := list "--key-file" "/key/priv_key.bin" }}
{{- if .Values.daemon.peers }}
{{- $arguments = concat $arguments (list "--peers") .Values.daemon.peers }}
{{- end }}
{{- toJson (concat $arguments .Values.daemon.arguments) }}
{{- end }}
