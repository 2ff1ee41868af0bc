# docker build -t nstjax . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/images" nstjax
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/images" nstjax paint photo.jpg painting.jpg -o stylized.png
FROM python:3.13-slim
COPY . /source
RUN pip install --no-cache-dir /source && rm -r /source
ENV NSTJAX_CACHE=/tmp/nstjax
WORKDIR /images
ENTRYPOINT ["nstjax"]
CMD ["paint", "--optimizer", "lbfgs"]
