{{/* The name of what belongs to the whole release: its own, with the chart's unless that is in it already. */}}
{{- define "headwater.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of a service's objects: the release's with the service's behind, in 52 characters, so that there is room for
     what is put behind it. That of the embedded process is the release's alone. Takes (list . NAME). */}}
{{- define "headwater.name" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{- if eq $service $root.Chart.Name -}}
{{- include "headwater.fullname" $root -}}
{{- else -}}
{{- $room := int (sub 51 (len $service)) -}}
{{- printf "%s-%s" (include "headwater.fullname" $root | trunc $room | trimSuffix "-") $service -}}
{{- end -}}
{{- end -}}

{{/* Two tables in one, as JSON: what the second says goes before the first, `false` and 0 too, unlike mergeOverwrite. */}}
{{- define "headwater.merged" -}}
{{- $out := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- $below := get $out $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $below) -}}
{{- $value = include "headwater.merged" (list $below $value) | fromJson -}}
{{- end -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* What runs, as JSON: by name, each service with the defaults filled in. */}}
{{- define "headwater.services" -}}
{{- $all := dict -}}
{{- $own := ternary .Values.services (dict .Chart.Name .Values.embedded) (eq .Values.mode "cluster") -}}
{{- range $name, $service := $own -}}
{{- $merged := include "headwater.merged" (list $.Values.defaults $service) | fromJson -}}
{{- if $merged.enabled -}}{{- $_ := set $all $name $merged -}}{{- end -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/* Whether an engine is there. Takes (list . ENGINE). */}}
{{- define "headwater.configured" -}}
{{- $engine := get (index . 0).Values (index . 1) -}}
{{- $keys := default dict $engine.secretKeys -}}
{{- if or $engine.bootstrapServers $engine.uri $engine.url $keys.uri $keys.url -}}yes{{- end -}}
{{- end -}}

{{/* The engines that a service uses and that are there, as a JSON list. Takes (list . SERVICE). */}}
{{- define "headwater.engines" -}}
{{- $root := index . 0 -}}{{- $engines := list -}}
{{- range (index . 1).engines -}}
{{- if include "headwater.configured" (list $root .) -}}{{- $engines = append $engines . -}}{{- end -}}
{{- end -}}
{{- toJson $engines -}}
{{- end -}}

{{/* The ports of an engine, as a JSON list: those that its endpoint names, unless they are given. Takes an engine. */}}
{{- define "headwater.ports" -}}
{{- $ports := list -}}
{{- range regexFindAll ":[0-9]+(/|,|$)" (coalesce .bootstrapServers .uri .url | default "") -1 -}}
{{- $ports = append $ports (regexFind "[0-9]+" . | int) -}}
{{- end -}}
{{- default $ports .ports | uniq | toJson -}}
{{- end -}}

{{/* headwater.toml of a service. The user's tables first: what stands before any table is of the top level. A value of YAML
     is written as in JSON, which TOML reads too. Takes (list . SERVICE). */}}
{{- define "headwater.toml" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{- range list $root.Values.config $service.config }}{{ with . | trim }}{{ . }}
{{ end }}{{ end -}}
{{- range include "headwater.engines" . | fromJsonArray }}
[{{ . }}]
{{- range $key, $value := omit (get $root.Values .) "existingSecret" "secretKeys" "filesSecret" "ports" }}
{{- if ne (toString $value) "" }}
{{ snakecase $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ end }}
{{- if eq $root.Values.mode "cluster" }}
[peers] # every address of a name, so that calls are spread
{{- range $name, $_ := include "headwater.services" $root | fromJson }}
{{ snakecase $name }} = "dns:///{{ include "headwater.name" (list $root $name) }}.{{ $root.Release.Namespace }}.svc:7070"
{{- end }}
{{ end -}}
{{- end -}}

{{/* The environment: where things are, then what is secret in the engines' settings. Takes (list . SERVICE). */}}
{{- define "headwater.env" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
- name: HEADWATER_CONFIG
  value: /etc/headwater/headwater.toml
- name: HEADWATER_DATA
  value: /data
- name: HEADWATER_GRPC_ADDRESS
  value: 0.0.0.0:7070
- name: HEADWATER_HTTP_ADDRESS
  value: 0.0.0.0:8080
{{- range $name := include "headwater.engines" . | fromJsonArray }}
{{- $engine := get $root.Values $name }}
{{- range $setting, $key := $engine.secretKeys }}
- name: HEADWATER__{{ upper $name }}__{{ snakecase $setting | upper }}
  valueFrom:
    secretKeyRef:
      name: {{ $engine.existingSecret }}
      key: {{ $key }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Takes (list . SERVICE); volumes are those of the configuration, the engines' files and what may be written. */}}
{{- define "headwater.mounts" -}}
- name: config
  mountPath: /etc/headwater/headwater.toml
  subPath: headwater.toml # a directory would be read-only, with no place for the engines' below it
  readOnly: true
{{- range include "headwater.engines" . | fromJsonArray }}
{{- if (get (index $ 0).Values .).filesSecret }}
- name: {{ . }}
  mountPath: /etc/headwater/{{ . }}
  readOnly: true
{{- end }}
{{- end }}
- name: data
  mountPath: /data
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* Takes (list . SERVICE CONFIGMAP). */}}
{{- define "headwater.volumes" -}}
- name: config
  configMap:
    name: {{ index . 2 }}
{{- range $engine := include "headwater.engines" . | fromJsonArray }}
{{- with (get (index $ 0).Values $engine).filesSecret }}
- name: {{ $engine }}
  secret:
    secretName: {{ . }}
{{- end }}
{{- end }}
- name: tmp
  emptyDir: {}
{{- end -}}

{{/* Refuses values that cannot work together; what is wrong by itself is refused by values.schema.json. */}}
{{- define "headwater.refuse" -}}
{{- $services := include "headwater.services" . | fromJson -}}
{{- $needed := dict -}}
{{- range $name, $service := $services -}}
{{- $own := ternary (get $.Values.services $name) $.Values.embedded (eq $.Values.mode "cluster") -}}
{{- if and $service.singleton (or $service.autoscaling.enabled (gt (int $own.replicas) 1)) -}}
{{- fail (printf "%s is a singleton, so it has one replica and is not scaled: leave replicas and autoscaling out" $name) -}}
{{- end -}}
{{- if and (not $service.singleton) (or $service.storage.size $service.storage.existingClaim) -}}
{{- fail (printf "%s has a volume, which one pod alone can use: set its singleton: true, or leave storage out" $name) -}}
{{- end -}}
{{- if gt (int $service.autoscaling.minReplicas) (int $service.autoscaling.maxReplicas) -}}
{{- fail (printf "%s: autoscaling.minReplicas is more than maxReplicas" $name) -}}
{{- end -}}
{{- range $service.engines -}}
{{- $_ := set $needed . $name -}}
{{- end -}}
{{- $toml := printf "%s\n%s" $.Values.config $service.config -}}
{{- with regexFind "(?m)^\\s*\\[+\\s*(kafka|neo4j|mongodb|opensearch|postgresql|peers)\\b" $toml -}}
{{- fail (printf "config has the table %s], which this chart makes from values: set those instead" (trim .)) -}}
{{- end -}}
{{- if and (eq $name "ingest") (not $service.singleton) (regexMatch "(?m)^\\s*\\[\\[\\s*ingest\\.(folders|buckets)\\b" $toml) -}}
{{- fail "ingest watches folders or buckets, which one pod alone can do: set services.ingest.singleton: true, and storage.size" -}}
{{- end -}}
{{- end -}}
{{- range $engine, $name := omit $needed "opensearch" "postgresql" -}}
{{- if not (include "headwater.configured" (list $ $engine)) -}}
{{- fail (printf "%s.%s is missing, which %s needs: this chart brings no engines, so name one that is there" $engine (ternary "bootstrapServers" "uri" (eq $engine "kafka")) $name) -}}
{{- end -}}
{{- end -}}
{{- if hasKey $needed "opensearch" -}}
{{- if eq (include "headwater.configured" (list . "opensearch")) (include "headwater.configured" (list . "postgresql")) -}}
{{- fail "chunks are kept in OpenSearch or in PostgreSQL: give either opensearch.url or postgresql.uri" -}}
{{- end -}}
{{- end -}}
{{- range $engine := list "kafka" "neo4j" "mongodb" "opensearch" "postgresql" -}}
{{- $values := get $.Values $engine -}}
{{- if and $values.secretKeys (not $values.existingSecret) -}}
{{- fail (printf "%s.secretKeys names keys of a Secret, and %s.existingSecret says of none" $engine $engine) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Takes (list . NAME SERVICE). */}}
{{- define "headwater.serviceAccountName" -}}
{{- $account := (index . 2).serviceAccount -}}
{{- default (ternary (include "headwater.name" .) "default" $account.create) $account.name -}}
{{- end -}}

{{/* Takes (list . NAME SERVICE). */}}
{{- define "headwater.image" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $image := (index . 2).image -}}
{{- $suffix := ternary "" (printf "-%s" $name) (eq $name $root.Chart.Name) -}}
{{- $repository := default (printf "%s%s" $root.Values.image.repository $suffix) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $image.tag $root.Values.image.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Takes (list . NAME); what never changes during a release's life. */}}
{{- define "headwater.selector" -}}
{{ include "headwater.release" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* All pods of the release have these. */}}
{{- define "headwater.release" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "headwater.labels" -}}
{{ include "headwater.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "headwater.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "headwater.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Rules of the way out: names, and the ports of engines. Takes (list . ENGINES). */}}
{{- define "headwater.egress" -}}
{{- $root := index . 0 -}}{{- $ports := list -}}
{{- range index . 1 -}}
{{- $ports = concat $ports (include "headwater.ports" (get $root.Values .) | fromJsonArray) -}}
{{- end -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- if $ports }}
- ports:
    {{- range uniq $ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- with $root.Values.networkPolicy.engines }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}
