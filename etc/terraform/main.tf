# What a machine with GPUs is given at its start, for any cloud: hand `user_data` to its resource. An example:
#
#   module "mole" {
#     source  = "./cluster-dash/etc/terraform"
#     url     = "https://dash.example.org/"
#     code    = var.enrolment_code            # cluster-dash-server token new --enrol --names 'gpu-*' --max 20 --ttl 24h
#     archive = "https://files.example.org/cluster-dash-0.1.0.tar.gz"
#     sha256  = "…"
#   }
#
#   resource "aws_instance" "gpu" {
#     instance_type = "g5.xlarge"
#     user_data     = module.mole.user_data
#   }

variable "url" {
  description = "Where moles post."
  type        = string
  validation {
    condition     = startswith(var.url, "https://")
    error_message = "A code travels to it: https:// only."
  }
}

variable "code" {
  description = "A code that each machine trades for a token of its own."
  type        = string
  sensitive   = true
}

variable "archive" {
  description = "Where the archive of `make dist` is."
  type        = string
}

variable "sha256" {
  description = "Its checksum."
  type        = string
}

output "user_data" {
  description = "For cloud-init."
  sensitive   = true
  value = templatefile("${path.module}/../cloud-init/mole.yaml.tftpl", {
    url     = var.url
    code    = var.code
    archive = var.archive
    sha256  = var.sha256
  })
}
