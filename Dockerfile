# Image for work pools that start a container for each run: Prefect's image of the locked version and
# this package, for a user without privileges. In a clone or an unpacked source distribution:
#
#   docker build -t REPOSITORY/NAME:TAG .
#
# EXTRAS are those extras of pyproject.toml that the runs need, such as the client of your storage.
FROM prefecthq/prefect:3.9.1-python3.11 AS dependencies
RUN --mount=type=bind,source=constraints.txt,target=constraints.txt \
    pip install --no-cache-dir --no-deps --require-hashes -r constraints.txt

FROM dependencies AS build
WORKDIR /build
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist .

FROM dependencies
ARG EXTRAS=s3
RUN --mount=type=bind,from=build,source=/build/dist,target=dist \
    pip install --no-cache-dir "$(echo dist/prefect_cometapi-*.whl)[$EXTRAS]"

# Kubernetes proves that a user is not root only by its number.
RUN useradd --uid 1001 --create-home --home-dir /home/prefect prefect
ENV HOME=/home/prefect
WORKDIR /home/prefect
USER 1001
